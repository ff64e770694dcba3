"""The status page: a view of the node as one HTML document, made by a pure function.

Nothing is fetched from elsewhere and nothing is built: style and script are in the document, and
the header ``Content-Security-Policy`` names their digests, so that no other could run. All that
comes from elsewhere is escaped. The script asks for the page again when something happens and puts
what is new into the place of the old; without scripts the page reloads itself.
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from layermanager import __version__
from layermanager.readable import age_text, escaped, short_digest, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from layermanager.daemon.events import Event
    from layermanager.daemon.following import FollowStatus
    from layermanager.leases import Holder
    from layermanager.model import DesiredLayer, Digest, ImageInfo, LayerInfo, StoreUsage

CONTENT_TYPE: Final = "text/html; charset=utf-8"
_MAX_EVENTS: Final = 15
_MAX_ROWS: Final = 200
_MAX_TASKS: Final = 20
_MAX_HOLDERS: Final = 3

_STYLE: Final = """
:root{color-scheme:light dark;--bg:#f4f5f7;--card:#fff;--ink:#1a1f29;--dim:#646c7a;--line:#e3e6eb;
--desired:#2f6fed;--cached:#e0a526;--amber:#8f6400;--other:#a4acba;--free:#e6e9ee;--good:#17855a;
--bad:#c8324a}
@media(prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1b2029;--ink:#e8ebf0;--dim:#98a1b0;
--line:#2c333f;--desired:#5b8ff9;--cached:#d9a441;--amber:#e0b25c;--other:#5d6675;--free:#2a313d;--good:#4cc38a;
--bad:#f2738a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
main{max-width:64rem;margin:0 auto;padding:1.25rem 1rem 3rem}
header{display:flex;align-items:baseline;gap:.75rem;margin-bottom:1rem;flex-wrap:wrap}
h1{font-size:1.35rem;margin:0;letter-spacing:-.01em}
h2{font-size:.95rem;margin:0 0 .75rem}
h2 small{font-weight:400;color:var(--dim);margin-left:.35rem}
header span{color:var(--dim);font-size:.85rem}
header .state{margin-left:auto}
section{background:var(--card);border:1px solid var(--line);border-radius:.75rem;
padding:1rem 1.1rem;margin-bottom:1rem}
.pill{display:inline-block;padding:.05rem .6rem;border-radius:1rem;font-size:.8rem;
font-weight:600;white-space:nowrap;border:1px solid currentColor}
.desired,.running{color:var(--desired)}.cached{color:var(--amber)}
.pill.installing,.pill.committing{background:var(--desired);border-color:var(--desired);color:#fff}
.good{color:var(--good)}.failed{color:var(--bad)}
.missing,.pending,.cancelled{color:var(--dim)}
svg{display:block;width:100%;height:1.1rem;border-radius:.4rem}
rect.desired{fill:var(--desired)}rect.cached{fill:var(--cached)}rect.held{fill:var(--amber)}rect.other{fill:var(--other)}
rect.free{fill:var(--free)}
dl{display:flex;flex-wrap:wrap;gap:.35rem 1.75rem;margin:.8rem 0 0}
dl div{display:flex;gap:.45rem;align-items:baseline}
dt{color:var(--dim);font-size:.85rem}
dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
dt::before{content:"";display:inline-block;width:.65rem;height:.65rem;border-radius:.2rem;
margin-right:.4rem;background:var(--swatch,transparent)}
dt.desired{--swatch:var(--desired)}dt.cached{--swatch:var(--cached)}dt.held{--swatch:var(--amber)}
dt.other{--swatch:var(--other)}
dt.free{--swatch:var(--free)}dt.limit::before{display:none}dt.desired,dt.cached{color:var(--dim)}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:500;font-size:.8rem;color:var(--dim);padding:0 .6rem .35rem 0}
td{padding:.45rem .9rem .45rem 0;border-top:1px solid var(--line);vertical-align:top}
td.end,th.end{text-align:right;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}
code{font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.name{font-weight:600;overflow-wrap:anywhere}.dim{color:var(--dim)}
td small{display:block;color:var(--bad);overflow-wrap:anywhere}td small.dim{color:var(--dim)}
progress{width:100%;height:.5rem;appearance:none;border:0;border-radius:.25rem;overflow:hidden;
background:var(--free);color:var(--desired)}
progress::-webkit-progress-bar{background:var(--free)}
progress::-webkit-progress-value{background:var(--desired);transition:width .4s}
progress::-moz-progress-bar{background:var(--desired)}
.task{margin-top:.8rem}.task div{display:flex;justify-content:space-between;gap:1rem;
flex-wrap:wrap}
ol{list-style:none;margin:0;padding:0}
li{display:flex;gap:.9rem;padding:.35rem 0;border-top:1px solid var(--line)}
li:first-child{border:0}
li time{color:var(--dim);white-space:nowrap;min-width:5.2rem;font-variant-numeric:tabular-nums}
li span{overflow-wrap:anywhere}
p{margin:0;color:var(--dim)}
#offline{display:none;background:var(--bad);color:#fff;text-align:center;padding:.3rem}
body.offline #offline{display:block}body.offline main{opacity:.55}
@media(max-width:40rem){thead{display:none}tr{display:flex;flex-wrap:wrap;gap:.1rem .8rem;
padding:.55rem 0;border-top:1px solid var(--line);align-items:baseline}
tbody tr:first-child{border:0}td{border:0;padding:0}
td:first-child{order:2;min-width:6.2rem;text-align:right}
td:nth-child(2){flex:1 0 calc(100% - 7rem);order:1}
td:nth-child(n+3){order:3;color:var(--dim);font-size:.85rem}
td.end{text-align:left}.task div{gap:0 1rem}section{padding:.9rem}}
"""

# What comes is the page itself, parsed: nothing of it is put together here. The number of elements
# stays what one page has, however long it is open.
_SCRIPT: Final = """
"use strict";
let source = null, due = 0, busy = false, last = 0;
async function refresh() {
  if (busy) return;
  busy = true;
  try {
    const answer = await fetch("/", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
    document.body.classList.remove("offline");
  } catch (error) {
    document.body.classList.add("offline");
  }
  last = Date.now();
  busy = false;
}
function soon() {
  if (due) return;
  due = setTimeout(() => { due = 0; refresh(); }, Math.max(0, last + 1000 - Date.now()));
}
function follow() {
  if (document.hidden) {
    if (source) source.close();
    source = null;
    return;
  }
  if (source && source.readyState !== EventSource.CLOSED) return;
  source = new EventSource("/v1/events");
  for (const kind of ["operation", "progress", "removed", "desired-state", "ready", "gap"])
    source.addEventListener(kind, soon);
  source.onopen = soon;
}
document.addEventListener("visibilitychange", follow);
setInterval(() => { if (!document.hidden) { follow(); soon(); } }, 15000);
follow();
"""


def _source_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_source_of(_STYLE)}; script-src {_source_of(_SCRIPT)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class View:
    """What the page shows.

    Attributes:
        now: the time.
        is_ready: whether operations are done.
        source: how looking for the desired state goes; None where nothing is followed.
        desired: the layers that shall be here, as far as somebody has said so.
        layers: what is here.
        images: the images that are here.
        holders: what keeps each layer from being removed.
        usage: where the space went.
        time_to_live: how long cached layers are kept.
        operations: those that have not ended, as JSON.
        events: the last ones, the latest one first.
    """

    now: datetime
    is_ready: bool
    source: FollowStatus | None
    desired: Sequence[DesiredLayer]
    layers: Sequence[LayerInfo]
    images: Sequence[ImageInfo]
    holders: Mapping[Digest, Sequence[Holder]]
    usage: StoreUsage
    time_to_live: timedelta
    operations: Sequence[Mapping[str, Any]]
    events: Sequence[Event]


def render(view: View) -> str:
    """The page that shows *view*."""
    sections = [
        _header(view),
        _source(view),
        *map(_operation, view.operations),
        _space(view.usage),
        _images(view),
        _layers(view),
        _events(view),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<title>layermanager</title>"
        '<link rel="icon" href="data:,">'
        '<noscript><meta http-equiv="refresh" content="10"></noscript>'
        f"<style>{_STYLE}</style></head><body>"
        '<div id="offline" role="status">No answer from the node; trying again</div>'
        f"<main>{''.join(sections)}</main>"
        f"<script>{_SCRIPT}</script></body></html>"
    )


def _header(view: View) -> str:
    state, kind = ("ready", "good") if view.is_ready else ("starting", "pending")
    if view.is_ready and view.operations:
        state, kind = "working", "running"
    return (
        f"<header><h1>layermanager</h1><span>{__version__}</span>"
        f"<span>{view.now:%Y-%m-%d %H:%M:%S} UTC</span>"
        f'<span class="state pill {kind}">{state}</span></header>'
    )


def _source(view: View) -> str:
    if view.source is None:
        return ""
    status = view.source
    looked = "not looked at yet"
    if status.last_poll is not None:
        looked = f"looked at {age_text(view.now - status.last_poll)} ago"
    if status.last_change is not None:
        looked += f", taken {age_text(view.now - status.last_change)} ago"
    trouble = ""
    if status.error is not None:
        what = "refused" if status.is_refused else "cannot be had"
        trouble = f'<p class="failed">{what}: {_text(str(status.error))}</p>'
    return (
        f'<section><h2>Desired state <small>{looked}</small></h2><span class="name">'
        f"{_text(status.source)}</span>{trouble}</section>"
    )


def _operation(operation: Mapping[str, Any]) -> str:
    tasks = [
        _task(layer)
        for layer in operation.get("layers", ())
        if layer["phase"] in {"installing", "committing", "failed"}
    ]
    if len(tasks) > _MAX_TASKS:
        tasks[_MAX_TASKS:] = [f'<p class="task">… and {len(tasks) - _MAX_TASKS} more</p>']
    waiting = sum(layer["phase"] == "pending" for layer in operation.get("layers", ()))
    if waiting:
        tasks.append(f'<p class="task">{_count(waiting, "layer")} waiting</p>')
    if check := operation.get("check"):
        tasks.append(
            f'<div class="task"><div><span>layer {check["layer"]} of {check["layers"]}</span>'
            f'<span class="dim">{size_text(check["read"])} read</span></div>'
            f'<progress max="{check["layers"]}" value="{check["layer"]}"></progress></div>'
        )
    if reason := operation.get("waitsFor"):
        tasks.append(f'<p class="task">waits: {_text(reason)}</p>')
    return (
        f"<section><h2>{_text(operation['kind'])} <small>operation {_text(operation['id'])}"
        f'</small> <span class="pill {operation["state"]}">{operation["state"]}</span></h2>'
        f"{''.join(tasks)}</section>"
    )


def _task(layer: Mapping[str, Any]) -> str:
    name = _text(_name(layer["layerId"], layer["version"], layer["digest"]))
    if layer["phase"] == "failed":
        message = _text(str(layer["error"]["message"]))
        return f'<div class="task"><span class="failed">{name}: {message}</span></div>'
    size = layer.get("size")
    of = f" of {size_text(size)}" if size else ""
    value = f' value="{min(layer["transferred"], size)}" max="{size}"' if size else ""
    return (
        f'<div class="task"><div><span>{name}</span>'
        f'<span class="dim">{size_text(layer["transferred"])}{of}</span></div>'
        f'<progress aria-label="{name}"{value}></progress></div>'
    )


def _space(usage: StoreUsage) -> str:
    parts = (
        ("desired", usage.desired),
        ("cached", usage.reclaimable),
        ("held", usage.held),
        ("other", usage.other),
        ("free", usage.free),
    )
    total = max(usage.total, 1)
    bars, position = [], 0.0
    for kind, size in parts:
        width = 100 * size / total
        bars.append(
            f'<rect class="{kind}" x="{position:.3f}%" width="{width:.3f}%" height="100%"/>'
        )
        position += width
    legend = [(kind, size_text(size)) for kind, size in parts if size or kind != "held"]
    if usage.limit:
        legend.append(("limit", f"{size_text(usage.limit)} for layers"))
    items = "".join(
        f'<div><dt class="{kind}">{kind}</dt><dd>{text}</dd></div>' for kind, text in legend
    )
    return (
        f"<section><h2>Space <small>{size_text(usage.total)} in {_text(str(usage.path))}"
        f'</small></h2><svg role="img" aria-label="where the space went">{"".join(bars)}</svg>'
        f"<dl>{items}</dl></section>"
    )


def _images(view: View) -> str:
    if not view.images:
        return ""
    rows = []
    for image in sorted(view.images, key=lambda one: (one.cached, one.reference)):
        state = "cached" if image.cached else "desired"
        rows.append(
            f'<tr><td><span class="pill {state}">{state}</span></td>'
            f'<td><span class="name">{_text(image.reference)}</span></td>'
            f"<td>{_text(image.platform)}</td><td>{_digest(image.digest)}</td>"
            f'<td class="end">{_count(len(image.layers), "layer")}</td>'
            f'<td class="end">{age_text(view.now - image.timestamp)}</td></tr>'
        )
    more = f"<p>… and {len(rows) - _MAX_ROWS} more</p>" if len(rows) > _MAX_ROWS else ""
    return (
        "<section><h2>Images</h2><table><thead><tr><th>State</th><th>Image</th><th>Platform</th>"
        '<th>Digest</th><th class="end">Layers</th><th class="end">Since</th></tr></thead>'
        f"<tbody>{''.join(rows[:_MAX_ROWS])}</tbody></table>{more}</section>"
    )


def _text(text: str) -> str:
    """Return *text* as HTML shows it: nothing in it is markup, or changes how the page is read."""
    return html.escape(escaped(text))


def _digest(digest: str) -> str:
    return f'<code title="{_text(digest)}">{_text(short_digest(digest))}</code>'


@dataclass(frozen=True, slots=True)
class _Row:
    state: str
    name: str
    version: str
    digest: str
    size: str
    since: str
    note: str = ""
    used_by: str = ""


def _layers(view: View) -> str:
    rows = list(_rows(view))
    shown = "".join(map(_row, rows[:_MAX_ROWS]))
    counts = ", ".join(
        f"{sum(row.state == state for row in rows)} {state}"
        for state in dict.fromkeys(row.state for row in rows)
    )
    if not rows:
        return "<section><h2>Layers</h2><p>No layers are desired, and none are here.</p></section>"
    more = f"<p>… and {len(rows) - _MAX_ROWS} more</p>" if len(rows) > _MAX_ROWS else ""
    return (
        f"<section><h2>Layers <small>{counts}</small></h2><table><thead><tr><th>State</th>"
        '<th>Layer</th><th>Version</th><th>Digest</th><th class="end">Size</th>'
        f'<th class="end">Since</th></tr></thead><tbody>{shown}</tbody></table>{more}</section>'
    )


def _rows(view: View) -> Iterator[_Row]:
    here = {layer.digest: layer for layer in view.layers}
    progress = {
        layer["digest"]: layer
        for operation in view.operations
        for layer in operation.get("layers", ())
    }
    missing = [layer for layer in view.desired if layer.digest not in here]
    for desired in dict.fromkeys(missing):
        moment = progress.get(desired.digest)
        yield _Row(
            state="missing" if moment is None else str(moment["phase"]),
            name=desired.layer_id or "-",
            version=desired.version or "-",
            digest=desired.digest,
            size="" if desired.size is None else size_text(desired.size),
            since="",
            note=str(moment["error"]["message"]) if moment and "error" in moment else "",
        )
    for layer in sorted(view.layers, key=lambda one: (one.cached, one.layer_id, one.version)):
        yield _Row(
            state="cached" if layer.cached else "desired",
            name=layer.layer_id or "-",
            version=layer.version or "-",
            digest=layer.digest,
            size=size_text(layer.size),
            since=_since(layer, view),
            used_by=", ".join(map(str, view.holders.get(layer.digest, ())[:_MAX_HOLDERS])),
        )


def _since(layer: LayerInfo, view: View) -> str:
    age = view.now - layer.timestamp
    if not layer.cached:
        return age_text(age)
    return f"{age_text(age)}, {age_text(view.time_to_live - age)} left"


def _row(row: _Row) -> str:
    note = f"<small>{_text(row.note)}</small>" if row.note else ""
    if row.used_by:
        note += f'<small class="dim">in use by {_text(row.used_by)}</small>'
    return (
        f'<tr><td><span class="pill {_text(row.state)}">{_text(row.state)}</span></td>'
        f'<td><span class="name">{_text(row.name)}</span>{note}</td>'
        f"<td>{_text(row.version)}</td><td>{_digest(row.digest)}</td>"
        f'<td class="end">{row.size}</td><td class="end">{row.since}</td></tr>'
    )


def _events(view: View) -> str:
    told = ((event, _told(event)) for event in view.events)
    items = [
        f"<li><time>{age_text(view.now - event.time)} ago</time>"
        f'<span class="{kind}">{_text(text)}</span></li>'
        for event, (kind, text) in told
        if text
    ]
    body = f"<ol>{''.join(items[:_MAX_EVENTS])}</ol>" if items else "<p>Nothing happened yet.</p>"
    return f"<section><h2>Recent events</h2>{body}</section>"


def _told(event: Event) -> tuple[str, str]:
    """The kind of an event and what it says on a line; nothing if it is a step of another one."""
    data: Mapping[str, Any] = event.data
    error = f": {data['error']['message']}" if "error" in data else ""
    match event.kind, data.get("state", data.get("phase")):
        case "operation", "failed" | "succeeded" | "cancelled" as state:
            return ("failed" if error else ""), f"{data['kind']} {state}{error}"
        case "progress", "installed" | "failed" as phase:
            name = _name(data["layerId"], data["version"], data["digest"])
            return ("failed" if error else ""), f"{name} {phase}{error}"
        case "removed", _:
            name = _name(data["layerId"], data["version"], data["digest"])
            return "", f"{name} {data['reason']}, {size_text(data['size'])} freed"
        case "desired-state", _:
            text = f"desired state of {data['source']} {data['result']}{error}"
            return ("failed" if error else ""), text
        case "ready", _:
            return "", "the store is clean, and the daemon ready"
        case _:
            return "", ""


def _name(layer_id: str, version: str, digest: str) -> str:
    return f"{layer_id} {version}".strip() or short_digest(digest)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

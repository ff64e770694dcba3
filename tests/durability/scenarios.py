"""The operations that are walked, each from a state of its own.

``prepare`` makes that state, ``act`` is what is walked. Doing ``act`` again after it was
interrupted has the same end as doing it once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import threading
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aos_schema import make_tables_of_aos
from durability.site import Site
from durability.walk import Fault, Kind, Walk, say
from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.adoption import remove_markers, write_index
from layermanager.cancellation import Cancellation
from layermanager.check import Status
from layermanager.errors import (
    LayerManagerError,
    LayersFailedError,
    MountNotExistError,
)
from layermanager.images.directories import LAYER_NAME
from layermanager.inventory import Inventory
from layermanager.model import LayerProgress, Phase, Repair
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step, unannounced
from layermanager.store import Store, index_path
from layermanager.testing.layers import LayerBuilder, digest_of
from layermanager.testing.sources import MemorySource, Mishap
from manager_fixtures import IMPATIENT, descendants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layermanager.manager import LayerManager
    from layermanager.model import DesiredLayer, LayerInfo

RETURNED: Final = 0
RAISED: Final = 10

_NOTHING_LEFT: Final = timedelta(0)
_STRANGER: Final = digest_of(b"stranger")
# More than one chunk of a transfer, so that a layer is interrupted in its middle, too.
_SIZE: Final = 300_000

_BREAKING_OFF: Final = (
    Mishap(breaks_after=_SIZE // 3),
    Mishap(refused="no route to host", is_transient=False),
)
_SPOOLING: Final = replace(IMPATIENT, spool_bytes=1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One operation.

    Attributes:
        prepare: brings the store into the state from which the operation begins.
        act: does the operation; the walk watches what is of interest of it.
        settings: of the configuration.
        end_otherwise: brings about the other state to which the operation may lead after a fault,
            if there is another one than without.
        leaves_rest: whether a fault may leave something to the next operation without failing this
            one.
    """

    prepare: Callable[[Site], None]
    act: Callable[[Site, Walk], None]
    settings: Mapping[str, Any]
    end_otherwise: Callable[[Site], None] | None = None
    leaves_rest: bool = False

    def site(self, base: Path) -> Site:
        """The store below *base*, with the settings of the scenario."""
        return Site(base, parallel_installs=1, **self.settings)


def perform(base: str, name: str, kind: str, step: str, occurrence: int) -> int:
    """Be a process that acts until a fault; return what came out, ``RETURNED`` or ``RAISED``.

    What a process that lives on must not keep is written to standard output.
    """
    descriptors = _open_descriptors()
    walk = Walk(Fault(Kind(kind), Step(step), occurrence))
    scenario = SCENARIOS[name]
    status = RETURNED
    try:
        scenario.act(scenario.site(Path(base)), walk)
    except LayerManagerError as error:
        say(f"raised {_names_of(error)}")
        status = RAISED
    say(f"kept {_open_descriptors() - descriptors} {descendants()} {threading.active_count()}")
    return status


KEPT_NOTHING: Final = "kept set() set() 1"


def _open_descriptors() -> set[str]:
    """What the open descriptors are, but for the one that this takes itself."""
    found = set()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all that is wanted
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")  # noqa: PTH115
    return found


def _names_of(error: LayerManagerError) -> list[str]:
    errors = error.exceptions if isinstance(error, LayersFailedError) else [error]
    return [type(one).__name__ for one in errors]


# Installing


def _publish(site: Site) -> None:
    for name in ("earlier", "one", "two", "three", "four"):
        site.publish(name, _SIZE if name == "one" else 0)


def _with_earlier(site: Site) -> None:
    _publish(site)
    site.apply(["earlier"])


def _apply(*names: str) -> Callable[[Site, Walk], None]:
    def act(site: Site, walk: Walk) -> None:
        with site.manager(on_step=walk, on_progress=walk.on_progress) as manager:
            walk.do(lambda: manager.process_desired_layers(site.layers(names)))

    return act


class _Turns:
    """Has one thread install and another commit by turns, always the same ones.

    The first layer is committed alone. When that begins, those in the middle are not ready yet;
    when it ends, they are, so that they are committed together. The last one waits for that.
    """

    def __init__(self, walk: Walk, layers: list[DesiredLayer]) -> None:
        self._on_progress = walk.on_progress
        self._first, self._second, *_, self._last_but_one, self._last = layers
        self._first_is_ready = threading.Event()
        self._last_has_begun = threading.Event()
        self._group_is_done = threading.Event()
        walk.when_met(self._go_on)

    def __call__(self, progress: LayerProgress) -> None:
        self._on_progress(progress)
        match progress.phase:
            case Phase.COMMITTING if progress.desired == self._first:
                self._first_is_ready.set()
                self._last_has_begun.wait()
            case Phase.INSTALLING if progress.desired == self._second:
                self._first_is_ready.wait()
            case Phase.INSTALLING if progress.desired == self._last:
                self._last_has_begun.set()
                self._group_is_done.wait()
            case Phase.INSTALLED | Phase.FAILED if progress.desired == self._last_but_one:
                self._group_is_done.set()
            case _:
                return

    def _go_on(self) -> None:
        for event in (self._first_is_ready, self._last_has_begun, self._group_is_done):
            event.set()


def _apply_group(site: Site, walk: Walk) -> None:
    new = site.layers(["one", "two", "three", "four"])
    layers_dir = site.config.layers_dir / "sha256"
    is_begun = any((layers_dir / layer.digest.encoded).exists() for layer in new)
    on_progress = walk.on_progress if is_begun else _Turns(walk, new)
    with site.manager(on_step=walk, on_progress=on_progress) as manager:
        walk.do(lambda: manager.process_desired_layers([site.layer("earlier"), *new]))


def _with_a_broken_package(site: Site) -> None:
    _with_earlier(site)
    package = Path(site.layer("one").url.removeprefix("file://"))
    package.write_bytes(package.read_bytes()[:-1] + b"?")


def _apply_what_is_broken(site: Site, walk: Walk) -> None:
    try:
        _apply("earlier", "one")(site, walk)
    except LayersFailedError:
        if walk.was_met:  # else it is that the package is broken
            raise


def _with_two(site: Site) -> None:
    _publish(site)
    site.apply(["earlier", "one", "two"])


def _with_two_cached(site: Site) -> None:
    _with_two(site)
    site.apply(["earlier"])


def _with_a_moved_package(site: Site) -> None:
    _with_two(site)
    (site.base / "elsewhere").symlink_to("published")


def _apply_from_elsewhere(site: Site, walk: Walk) -> None:
    layer = site.layer("one")
    moved = replace(layer, url=layer.url.replace("/published/", "/elsewhere/"))
    with site.manager(on_step=walk) as manager:
        walk.do(lambda: manager.process_desired_layers([*site.layers(["earlier", "two"]), moved]))


def _with_an_image(site: Site) -> None:
    site.publish_image("app", ["base", "app"])
    site.publish_image("other", ["base", "other"])
    with site.manager() as manager:
        manager.process_desired_layers([site.image("other")])


def _apply_another_image(site: Site, walk: Walk) -> None:
    with site.manager(on_step=walk, on_progress=walk.on_progress) as manager:
        walk.do(lambda: manager.process_desired_layers([site.image("app")]))


def _with_a_cached_image(site: Site) -> None:
    _with_an_image(site)
    with site.manager() as manager:
        manager.process_desired_layers([site.image("app")])


def _with_an_image_to_come(site: Site) -> None:
    """An image whose upper layer does not list directories of the lower one."""
    _with_an_image(site)
    base = LayerBuilder().directory("secret", mode=0o700).directory("home", uid=1000).tar()
    site.publish_image_of("app", [base, LayerBuilder().file("secret/key").file("home/x").tar()])


def _with_damaged_directories(site: Site) -> None:
    _with_an_image_to_come(site)
    _apply_another_image(site, Walk())
    (_directories(site).path / "secret").chmod(0o777)


def _with_unknown_directories(site: Site) -> None:
    """An image that was installed when the index of its lower layer was damaged."""
    _with_an_image(site)
    base = LayerBuilder().directory("secret", mode=0o700).file("name").tar()
    for layers in ([base], [base, LayerBuilder().file("secret/key").tar()]):
        site.publish_image_of("app", layers)
        _apply_another_image(site, Walk())
        index_path(site.config.index_dir, digest_of(base)).write_bytes(b"?")


def _with_outdated_directories(site: Site) -> None:
    """An image of which a lower layer, with its index, and the layer of directories changed."""
    _with_damaged_directories(site)
    (image,) = (one for one in Inventory(site.config).images() if not one.cached)
    store = Store(site.config.working_dir, site.config.layers_dir, site.config.index_dir)
    (store.path_of(image.layers[0]) / "secret").chmod(0o750)
    store.index_path_of(image.layers[0]).unlink()
    with store.adoption(image.layers[0]) as (root, index):
        write_index(root, index, Cancellation(), unannounced)


def _repair_all(site: Site, walk: Walk) -> None:
    """Repair what is damaged, as ``check --repair`` does."""
    inventory = Inventory(site.config)
    sources = inventory.sources()
    repairs = [
        Repair(report.layer, sources[report.layer.digest])
        for report in inventory.check(inventory.layers())
        if report.status is not Status.INTACT
    ]
    with site.manager(on_step=walk, on_progress=walk.on_progress) as manager:
        walk.do(lambda: manager.repair_layers(repairs))


def _directories(site: Site) -> LayerInfo:
    rows = site.state().rows.values()
    return next(row for row in rows if row.layer_id == LAYER_NAME)


def _repair_directories(site: Site, walk: Walk) -> None:
    layer = _directories(site)
    source = Inventory(site.config).sources()[layer.digest]
    with site.manager(on_step=walk, on_progress=walk.on_progress) as manager:
        walk.do(lambda: manager.repair_layers([Repair(layer, source)]))


# Removing


def _with_too_much_cached(site: Site) -> None:
    _with_two_cached(site)
    site.publish("large", _SIZE)


def _apply_evicting(site: Site, walk: Walk) -> None:
    total = sum(layer.size or 0 for layer in site.layers(["earlier", "one", "two"])) + 100_000
    partitions = Partitions(lambda _: DiskUsage(device=1, total=total, free=1 << 40))
    with site.manager(
        on_step=walk, on_progress=walk.on_progress, new_space_allocator=partitions.new_allocator
    ) as manager:
        walk.do(lambda: manager.process_desired_layers(site.layers(["earlier", "large"])))


def _evict_another(site: Site) -> None:
    """A layer that cannot be moved stays, and another one goes."""
    _apply_evicting(site, Walk(Fault(Kind.EIO, Step.MOVE_TO_TRASH, 1)))


def _remove(remove: Callable[[LayerManager], object]) -> Callable[[Site, Walk], None]:
    def act(site: Site, walk: Walk) -> None:
        with site.manager(on_step=walk) as manager:
            walk.do(lambda: remove(manager))

    return act


_remove_oldest: Final = _remove(lambda manager: manager.remove_cached_layers(1))


def _remove_without(*full: Step) -> Callable[[Site, Walk], None]:
    """Remove what has expired where there is no room for these steps.

    Once the files of a layer are gone there is room for all.
    """

    def act(site: Site, walk: Walk) -> None:
        steps = {*full}

        def fail(step: Step) -> None:
            walk(step)
            if step is Step.REMOVE_TREE:
                steps.discard(Step.WRITE_ROW)
            if walk.is_watching and step in steps:
                raise Kind.ENOSPC.error(step)

        with site.manager(on_step=fail) as manager:
            walk.do(lambda: manager.remove_expired_layers(_NOTHING_LEFT))

    return act


def _with_a_damaged_layer(site: Site) -> None:
    _with_two(site)
    row = site.state().rows[site.layer("one").digest]
    (row.path / "etc/name").write_text("damaged")


def _repair(site: Site, walk: Walk) -> None:
    source = site.layer("one")
    with site.manager(on_step=walk, on_progress=walk.on_progress) as manager:
        layer = manager.get_layer_info_by_digest(source.digest)
        walk.do(lambda: manager.repair_layers([Repair(layer, source)]))


def _with_a_strange_layer(site: Site) -> None:
    _with_two(site)
    index = index_path(site.config.index_dir, site.layer("one").digest)
    index.unlink()
    _adopt(site, Walk())  # with the size that it is given at this occasion
    index.unlink()


def _adopt(site: Site, walk: Walk) -> None:
    with site.manager(on_step=walk) as manager:
        layer = manager.get_layer_info_by_digest(site.layer("one").digest)
        walk.do(lambda: manager.adopt_layers([layer]))


def _with_markers(site: Site) -> None:
    _with_a_strange_layer(site)
    directory = _strange_directory(site)
    (directory / ".wh.gone").touch()
    os.mknod(directory / "gone", stat.S_IFCHR)


def _adopt_without_markers(site: Site, walk: Walk) -> None:
    with site.manager(on_step=walk) as manager:
        layer = manager.get_layer_info_by_digest(site.layer("one").digest)
        walk.do(lambda: manager.adopt_layers([layer], clean_markers=True))


def _remove_markers(site: Site) -> None:
    root = os.open(_strange_directory(site), os.O_RDONLY | os.O_DIRECTORY)
    remove_markers(root, Cancellation(), unannounced)
    os.close(root)


def _strange_directory(site: Site) -> Path:
    return site.state().rows[site.layer("one").digest].path


# Going on with a transfer


def _far_away(site: Site, names: Sequence[str], *mishaps: Mishap) -> Mapping[str, MemorySource]:
    """What was published as *names*, as if it were behind a network."""
    urls = [layer.url for layer in site.layers(names)]
    files = {url: Path(url.removeprefix("file://")).read_bytes() for url in urls}
    return {"file": MemorySource(files, list(mishaps), is_local=False)}


def _apply_in_two_parts(site: Site, walk: Walk) -> None:
    layers = site.layers(["earlier", "one"])
    sources = _far_away(site, ["one"], *_BREAKING_OFF)

    def apply_twice() -> None:
        with contextlib.suppress(LayersFailedError):
            manager.process_desired_layers(layers)
        manager.process_desired_layers(layers)

    with site.manager(on_step=walk, on_progress=walk.on_progress, sources=sources) as manager:
        walk.do(apply_twice)


def _with_a_spool(site: Site) -> None:
    _with_earlier(site)
    with contextlib.suppress(LayersFailedError):
        site.apply(["earlier", "one"], sources=_far_away(site, ["one"], *_BREAKING_OFF))
    if not site.spools():
        raise AssertionError("nothing was spooled")


def _with_a_spool_in_the_way(site: Site) -> None:
    _with_a_spool(site)
    site.publish("large", _SIZE)


def _apply_evicting_a_spool(site: Site, walk: Walk) -> None:
    """There is room for either layer, but not besides a spool."""

    def usage(_: Path) -> DiskUsage:
        spooled = sum(path.stat().st_size for path in site.spools())
        return DiskUsage(device=1, total=1 << 40, free=_SIZE + 50_000 - spooled)

    with site.manager(
        on_step=walk,
        on_progress=walk.on_progress,
        sources=_far_away(site, ["large", "one"]),
        new_space_allocator=Partitions(usage).new_allocator,
    ) as manager:
        walk.do(lambda: manager.process_desired_layers(site.layers(["earlier", "large", "one"])))


# Using


def _with_layers_of_its_own(site: Site) -> None:
    """Nobody knows whose a layer was that is mounted and gone, so no other test may have these."""
    for name in _own_names(site):
        site.publish(name)
    site.apply(_own_names(site))
    for name in ("target", "empty"):
        (site.base / name).mkdir()


def _with_one_of_its_own_cached(site: Site) -> None:
    _with_layers_of_its_own(site)
    site.apply(_own_names(site)[1:])


def _own_names(site: Site) -> tuple[str, str]:
    return f"one of {site.base.name}", f"two of {site.base.name}"


def _mount(site: Site, walk: Walk) -> None:
    """Mount, write, and unmount; what an interrupted one left mounted is unmounted first."""
    target = site.base / "target"
    with site.manager(on_step=walk) as manager:
        with contextlib.suppress(MountNotExistError):
            manager.umount("app")

        def use() -> None:
            with manager.mount("app", _own_names(site), target=target):
                assert (target / "etc/name").read_text() == _own_names(site)[0]

        try:
            walk.do(use)
        finally:
            with contextlib.suppress(MountNotExistError):
                manager.umount("app")


def _lease(site: Site, walk: Walk) -> None:
    with site.manager(on_step=walk) as manager:
        for lease in manager.leases():
            manager.release_lease(lease.lease_id)

        def use() -> None:
            with manager.lease(["one", "two"], owner="a test"):
                assert manager.remove_expired_layers(_NOTHING_LEFT) == ()

        walk.do(use)


def _remove_what_comes_into_use(site: Site, walk: Walk) -> None:
    """Somebody mounts a layer right before it is taken out of its place."""
    digest = site.layer(_own_names(site)[0]).digest
    lower = [site.config.layers_dir / "sha256" / digest.encoded, site.base / "empty"]
    with contextlib.ExitStack() as mounts:

        def mount_first(step: Step) -> None:
            if step is Step.MOVE_TO_TRASH:
                script = mount_command(lower, site.base / "target")
                mounts.enter_context(shell(script, prefix=IN_A_MOUNT_NAMESPACE))
            walk(step)

        with site.manager(on_step=mount_first) as manager:
            walk.do(lambda: manager.remove_expired_layers(_NOTHING_LEFT))


def _remove_what_is_cached(site: Site) -> None:
    """A fault may leave a layer that came into use as one that was removed, once it is not."""
    with site.manager() as manager:
        manager.remove_expired_layers(_NOTHING_LEFT)


# Starting and ending


def _start(site: Site, walk: Walk) -> None:
    with walk.watching():
        manager = site.manager(on_step=walk)
    manager.close()


def _close(site: Site, walk: Walk) -> None:
    manager = site.manager(on_step=walk)
    manager.process_desired_layers(site.layers(["earlier", "two"]))
    with walk.watching():
        manager.close()


def _with_leftovers(site: Site) -> None:
    """Leave all that interrupted operations can leave."""
    _with_two(site)
    layers_dir, index_dir = site.config.layers_dir, site.config.index_dir
    stranger = f"sha256/{_STRANGER.encoded}"
    for place in (".staging/one.1", ".trash/two.2", stranger, f"{stranger}.0123abcd"):
        (layers_dir / place / "deep").mkdir(parents=True)
        (layers_dir / place / "deep/file").write_text("left over")
        (layers_dir / place / "deep").chmod(0o500)
    (index_dir / ".staging/one.1").write_text("left over")
    (index_dir / f"sha256/{_STRANGER.encoded}.mtree.gz").write_text("left over")
    shutil.rmtree(site.state().rows[site.layer("two").digest].path)


def _with_nothing(site: Site) -> None:
    site.config.working_dir.mkdir()


def _with_nothing_at_all(site: Site) -> None:
    _with_nothing(site)
    _publish(site)


def _of_aos(site: Site) -> None:
    """A store as Aos leaves it: one layer, and one that it was removing."""
    _with_two(site)
    rows = site.state().rows
    shutil.rmtree(site.config.index_dir)
    for path in site.config.working_dir.glob(f"{site.config.database.name}*"):
        path.unlink()
    with contextlib.closing(sqlite3.connect(site.config.database)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        make_tables_of_aos(database)
        for name in ("earlier", "one"):
            row = rows[site.layer(name).digest]
            database.execute(
                "INSERT INTO layers VALUES (?, ?, ?, '', ?, ?, 0, ?)",
                (
                    *(row.digest, row.layer_id, str(row.path), row.version),
                    *("2026-11-24 00:49:32.58664659+00:00", row.size),
                ),
            )
        database.commit()


def _of_the_first_version(site: Site) -> None:
    """A database from before sources were remembered."""
    _with_two(site)
    with contextlib.closing(sqlite3.connect(site.config.database)) as database:
        for table in (
            "layerSources",
            "ociImages",
            "ociImageLayers",
            "layerLeases",
            "layerMounts",
            "layerFootprints",
            "storeTime",
            "agePeriods",
        ):
            database.execute(f"DROP TABLE {table}")
        database.execute("PRAGMA user_version = 1")


def _scenario(
    prepare: Callable[[Site], None], act: Callable[[Site, Walk], None], **settings: object
) -> Scenario:
    return Scenario(prepare, act, settings)


def _scenario_with_a_cached_layer(
    prepare: Callable[[Site], None], act: Callable[[Site, Walk], None]
) -> Scenario:
    """One in which the oldest cached layer is evicted if a change finds no room."""

    def act_and_evict(site: Site) -> None:
        act(site, Walk())
        _remove_oldest(site, Walk())

    return Scenario(prepare, act, {}, act_and_evict)


SCENARIOS: Final = {
    "install": _scenario(_with_earlier, _apply("earlier", "one")),
    "install a group": _scenario(_with_earlier, _apply_group),
    "refuse": _scenario(_with_a_broken_package, _apply_what_is_broken),
    "cache": _scenario(_with_two, _apply("earlier", "two")),
    "restore": _scenario(_with_two_cached, _apply("earlier", "one", "two")),
    "note a source": _scenario(_with_a_moved_package, _apply_from_elsewhere),
    "evict": Scenario(
        _with_too_much_cached,
        _apply_evicting,
        {"layers_part_limit": 100},
        _evict_another,
        leaves_rest=True,
    ),
    "install an image": _scenario_with_a_cached_layer(_with_an_image, _apply_another_image),
    "install an image with directories": _scenario_with_a_cached_layer(
        _with_an_image_to_come, _apply_another_image
    ),
    "repair the directories of an image": _scenario_with_a_cached_layer(
        _with_damaged_directories, _repair_directories
    ),
    "repair below directories that are not known": _scenario_with_a_cached_layer(
        _with_unknown_directories, _repair_all
    ),
    "repair directories that are outdated": _scenario_with_a_cached_layer(
        _with_outdated_directories, _repair_all
    ),
    "remove an image": _scenario(_with_a_cached_image, _remove_oldest),
    "remove what is expired": _scenario(
        _with_two_cached, _remove(lambda manager: manager.remove_expired_layers(_NOTHING_LEFT))
    ),
    "collect garbage": _scenario(
        _with_two_cached, _remove(lambda manager: manager.remove_cached_layers(1 << 40))
    ),
    "remove in place": _scenario(_with_two_cached, _remove_without(Step.MOVE_TO_TRASH)),
    "remove in place before the row": _scenario(
        _with_two_cached, _remove_without(Step.WRITE_ROW, Step.MOVE_TO_TRASH)
    ),
    "repair": _scenario(_with_a_damaged_layer, _repair),
    "adopt": _scenario(_with_a_strange_layer, _adopt),
    "adopt without markers": Scenario(
        _with_markers, _adopt_without_markers, {}, _remove_markers, leaves_rest=True
    ),
    "install in two parts": _scenario(_with_earlier, _apply_in_two_parts, network=_SPOOLING),
    "forget a spool": _scenario(_with_a_spool, _apply("earlier"), network=_SPOOLING),
    "evict a spool": _scenario(
        _with_a_spool_in_the_way, _apply_evicting_a_spool, network=_SPOOLING
    ),
    "mount": _scenario(_with_layers_of_its_own, _mount),
    "lease": _scenario(_with_two_cached, _lease),
    "remove what comes into use": Scenario(
        _with_one_of_its_own_cached,
        _remove_what_comes_into_use,
        {},
        _remove_what_is_cached,
        leaves_rest=True,  # without its row, until it is not in use any more
    ),
    "start": _scenario(_with_two, _start),
    "start over leftovers": Scenario(_with_leftovers, _start, {}, leaves_rest=True),
    "start over nothing": _scenario(_with_nothing, _start),
    "start over a database of Aos": Scenario(_of_aos, _start, {}, leaves_rest=True),
    "start over an older database": _scenario(_of_the_first_version, _start),
    "start when layers have expired": Scenario(
        _with_two_cached, _start, {"layer_ttl_days": 0}, leaves_rest=True
    ),
    "close": _scenario(_with_earlier, _close),
}

NEED_MOUNTS: Final = frozenset({"mount", "remove what comes into use"})
"""Those that mount layers, which only root may do."""

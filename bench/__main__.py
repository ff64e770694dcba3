"""The command: ``python -m bench [--runs N] [--json FILE] [--update PAGE] [NAME …]``."""

from __future__ import annotations

import argparse
import compileall
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import layermanager
from bench import corpora, debian, images, machine, report
from bench.checking import checking
from bench.durability import durability
from bench.fetching import at_a_rate, broken_link, large_file, many_layers
from bench.installing import in_parallel, one_layer, peak_memory
from bench.nothing_to_do import nothing_to_do
from bench.plots import plots
from bench.profiling import profile
from bench.pulling import pulling
from bench.serving import serving
from bench.setting import Setting, UnavailableError
from bench.starting import start_up
from bench.volumes import DirectoryVolumes, LoopVolumes

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.figures import Figure
    from bench.volumes import Volumes

    Benchmark = Callable[[Setting], tuple[Figure, ...]]

BENCHMARKS: Final[dict[str, Benchmark]] = {
    "install-many-files": partial(one_layer, corpora.many_files),
    "install-many-files-zstd": partial(one_layer, corpora.many_files_in_zstd),
    "install-few-files": partial(one_layer, corpora.few_files),
    "install-few-files-zstd": partial(one_layer, corpora.few_files_in_zstd),
    "install-debian": partial(one_layer, debian.debian),
    "install-debian-zstd": partial(one_layer, debian.debian_in_zstd),
    "install-in-parallel": in_parallel,
    "fetch": large_file,
    "fetch-many-layers": many_layers,
    "fetch-at-a-rate": at_a_rate,
    "fetch-over-a-broken-link": broken_link,
    "pull": partial(pulling, images.application),
    "pull-zstd": partial(pulling, images.application_in_zstd),
    "memory": partial(peak_memory, corpora.huge_files),
    "memory-zstd": partial(peak_memory, corpora.huge_files_in_zstd),
    "durability": durability,
    "check": checking,
    "profile": profile,
    "start-up": start_up,
    "nothing-to-do": nothing_to_do,
    "serve": serving,
}
_VOLUMES: Final[dict[str, Callable[[Path], Volumes]]] = {
    "loop": LoopVolumes,
    "directory": DirectoryVolumes,
}


def main() -> None:
    """Run the benchmarks that the command line names and show what they found."""
    arguments = _arguments()
    # What is installed has its byte code; where that is worked on it may not be written.
    compileall.compile_dir(Path(layermanager.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory(prefix="layermanager-bench.", dir=arguments.scratch) as name:
        scratch = Path(name).absolute()
        volumes = _VOLUMES[arguments.volumes](scratch)
        facts = machine.facts(volumes, scratch, arguments.runs)
        setting = Setting(scratch, arguments.kept.absolute(), volumes, arguments.runs)
        figures: list[Figure] = []
        left_out: dict[str, str] = {}
        for benchmark in arguments.names or BENCHMARKS:
            print(f"{benchmark} …", file=sys.stderr)
            try:
                figures += BENCHMARKS[benchmark](setting)
            except UnavailableError as error:
                left_out[benchmark] = str(error)
    results = report.markdown(facts, figures, left_out)
    print(results, end="")
    if arguments.json:
        arguments.json.write_text(report.document(facts, figures, left_out), encoding="utf-8")
    if arguments.update:
        report.update_page(arguments.update, results)
        for name, picture in plots(figures).items():
            arguments.update.with_name(name).write_text(picture, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure layermanager beside its peers."
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all unless named"
    )
    parser.add_argument("--runs", type=int, default=5, help="measurements a side (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there as well")
    parser.add_argument(
        "--update",
        type=Path,
        metavar="PAGE",
        help="put the results into this Markdown page, and their plots beside it",
    )
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="where a few GB of room are (default: TMPDIR)"
    )
    parser.add_argument(
        "--kept",
        type=Path,
        metavar="DIR",
        default=Path(".cache/bench"),
        help="where Debian's layer stays for the next run (default: .cache/bench)",
    )
    parser.add_argument(
        "--volumes",
        choices=_VOLUMES,
        default="loop" if os.geteuid() == 0 else "directory",
        help="where to unpack: a new ext4 on a loop device each time, as root, or new directories",
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return arguments


if __name__ == "__main__":
    main()

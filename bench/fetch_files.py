"""The program that is measured: it fetches and verifies files as a layer manager does, and ends.

Arguments: the configuration file, a working directory, and the file of desired layers. All files
are fetched at the same time; nothing is unpacked. It prints a JSON object: ``seconds`` from the
first byte to the end of the last file, and ``bytes``, a list: what each had when the first was
complete.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from layermanager import Cancellation, load_config, read_desired
from layermanager.clock import SystemClock
from layermanager.sources import default_sources, opener
from layermanager.space import Partitions
from layermanager.transfer.fetcher import Fetcher
from layermanager.transfer.spool import Spools

if TYPE_CHECKING:
    from layermanager import Config
    from layermanager.transfer.fetcher import Transfer


def main() -> None:
    """Fetch the files that the arguments name."""
    _, configuration, working_dir, desired = sys.argv
    logging.disable(logging.WARNING)  # broken links are what is measured
    config = load_config(Path(configuration), working_dir=Path(working_dir))
    layers = read_desired(Path(desired).read_bytes(), desired)
    with ExitStack() as stack:
        fetcher = _fetcher(config, stack)
        transfers = [fetcher.begin(layer, Cancellation()) for layer in layers]
        threads = stack.enter_context(ThreadPoolExecutor(len(layers)))
        fetched = [threads.submit(_fetch, transfer) for transfer in transfers]
        wait(fetched, return_when=FIRST_COMPLETED)
        shares = [transfer.transferred for transfer in transfers]
        start = min(one.result() for one in fetched)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bytes": shares}))


def _fetcher(config: Config, stack: ExitStack) -> Fetcher:
    clock = SystemClock()
    sources = default_sources(config.network, clock)
    for source in sources.values():
        stack.callback(source.close)
    spools = stack.enter_context(
        closing(Spools(config.download_dir, Partitions().new_allocator, durable=config.durable))
    )
    return Fetcher(
        open_stream=opener(sources),
        spools=spools,
        network=config.network,
        limits=config.limits,
        clock=clock,
    )


def _fetch(transfer: Transfer) -> float:
    """Fetch and verify a file; return when its first bytes were there."""
    with closing(transfer):
        chunks = transfer.chunks()
        next(chunks)
        start = time.perf_counter()
        for _ in chunks:
            pass
        transfer.verify()
        transfer.discard()
    return start


if __name__ == "__main__":
    main()

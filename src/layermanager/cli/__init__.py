"""The command ``layermanager``: arguments in, tables or JSON out, exit status by kind of error.

Commands only parse, call the library and print; ``tables`` and ``progress`` turn values into lines
as pure functions. It imports the library's public modules and click; what is heavy is imported by
the command that needs it, since ``--help`` and ``ls`` should not wait for it.
"""

from __future__ import annotations

import sys
import threading


def main() -> None:
    """Run the command line and end the process with its status."""
    from layermanager.cli.run import run  # noqa: PLC0415 - see above
    from layermanager.logs import log_unexpected, log_unexpected_in_thread  # noqa: PLC0415

    sys.excepthook = log_unexpected
    threading.excepthook = log_unexpected_in_thread
    sys.exit(run(sys.argv[1:]))

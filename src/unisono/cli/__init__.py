"""The command line: one file per verb.

Importing a verb costs little: what takes time (torch, the web server) is imported where it is
first needed, so that `--help` is quick and a network's processes start before anything else.
"""

import sys
import time

STARTED = time.perf_counter()
"""When this program began, for what it reports about its own start."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def main() -> None:
    """The console script `unisono`."""
    try:
        if sys.argv[1:2] == ["run"] and not {"-h", "--help"} & set(sys.argv):
            # Loading torch is the longest part of a start: it begins before anything else.
            from unisono.cli.child import start_servers

            start_servers()
        from unisono.cli.app import app

        app()
    except KeyboardInterrupt:  # before a verb runs, or while the program ends
        sys.stderr.write("error: stopped\n")
        sys.exit(INTERRUPTED)

"""The command line, as ``zcpipe`` and as ``python -m zcpipe``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. An interruption while it is imported, which takes its time, ends like any other."""
    try:
        from zcpipe.cli import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

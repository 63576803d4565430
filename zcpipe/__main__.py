"""``python -m zcpipe``: the command line."""

from __future__ import annotations

from zcpipe.cli import main

if __name__ == "__main__":
    main()

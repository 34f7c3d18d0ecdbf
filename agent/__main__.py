"""``python -m proplet.agent`` is the command ``proplet``."""

import sys

from proplet.agent.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m mach` is the `mach` command."""

import sys

from mach.commands.dispatch import main

if __name__ == "__main__":
    sys.exit(main())

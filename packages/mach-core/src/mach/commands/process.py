"""Owns how a command meets its process: errors become one line on stderr and an exit status, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mach.errors import CommandError, MachError


def run_command(
    name: str, command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None
) -> int:
    """Run `command` on `arguments` (sys.argv's without one) and return its exit status.

    A MachError is printed and gives status 2 (a CommandError its own); a closed pipe gives 0, because
    `mach-models | head` is no failure; Ctrl-C gives 130.
    """
    try:
        status = command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return status
    except MachError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, CommandError) else 2
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"{name}: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return 2

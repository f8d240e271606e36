"""Owns the lock that keeps two writers of one directory apart; it knows nothing of what they write."""

from __future__ import annotations

import fcntl
import os

from mach_store.errors import SidecarExportError


def lock_file(path: str) -> int:
    """A descriptor of the file `path`, locked; the lock ends with the process, however it ends.

    Raises:
        SidecarExportError: another process holds it.
        OSError: the file cannot be made.
    """
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise SidecarExportError(
                f"{path}: another export is writing here: wait for it, or end it, and export again"
            ) from error
        except OSError:
            os.close(fd)
            raise
        # The file may have been unlinked between open and flock: then this lock protects nothing.
        try:
            if os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def unlock_file(path: str, fd: int) -> None:
    """Give up the lock that `lock_file(path)` returned as `fd`, and remove the file."""
    # Unlinked while it is held: who has opened it meanwhile sees that the name is of another file now.
    os.unlink(path)
    os.close(fd)

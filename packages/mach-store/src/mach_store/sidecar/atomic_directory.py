"""Owns the exchange of a finished directory for an old one, so that a kill leaves one of the two, whole."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Callable

_AT_FDCWD_LINUX, _RENAME_EXCHANGE = -100, 2
_RENAME_SWAP_DARWIN = 2


def fsync_directory(path: str) -> None:
    """Make the entries of the directory `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def install_directory(new: str, target: str, discard: Callable[[str], object] | None = None) -> None:
    """Make the finished directory `new` appear as `target`, atomically; a former `target` is deleted after.

    Args:
        new: the finished directory.
        target: its name to be, on the same file system.
        discard: deletes the former target, which has the name `new` then; shutil.rmtree if None.

    Raises:
        OSError: the file system can neither rename nor exchange directories.
    """
    parent = os.path.dirname(os.path.abspath(target))
    if not os.path.lexists(target):
        os.rename(new, target)
    else:
        _exchange(new, target)
        fsync_directory(parent)
        (discard or shutil.rmtree)(new)
    fsync_directory(parent)


def _exchange(a: str, b: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        result = libc.renamex_np(os.fsencode(a), os.fsencode(b), _RENAME_SWAP_DARWIN)
    else:
        result = libc.renameat2(
            _AT_FDCWD_LINUX, os.fsencode(a), _AT_FDCWD_LINUX, os.fsencode(b), _RENAME_EXCHANGE
        )
    if result != 0:
        code = ctypes.get_errno()
        hint = " (remove the old directory first)" if code in (errno.EINVAL, errno.ENOSYS) else ""
        raise OSError(code, f"cannot exchange directories: {os.strerror(code)}{hint}", a, None, b)

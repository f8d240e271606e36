"""Owns how commands print what they found: tables, sizes, and strangers' strings made harmless."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, a rule under the header, no trailing blanks."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def printable(text: str) -> str:
    """`text` without what would break a line or a terminal: names come from strangers' files."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def readable_size(size: int) -> str:
    """Bytes as `14.2GB`, `3.1MB` or `0.4kB`, in powers of ten."""
    for limit, scale, unit in ((1e8, 1e9, "GB"), (1e5, 1e6, "MB")):
        if size >= limit:
            return f"{size / scale:.1f}{unit}"
    return f"{size / 1e3:.1f}kB"

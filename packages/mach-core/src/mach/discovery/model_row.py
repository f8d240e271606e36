"""Owns what is known of one listed model, and the merging of what several sources say of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mach.io.arch_registry import REGISTRY

LOCAL, REMOTE, BOTH = "local", "remote", "local+remote"


class ModelRow(NamedTuple):
    """One model.

    Attributes:
        name: what to call it.
        source: `local`, `remote` or `local+remote`.
        model_type: its architecture, or None if nobody says.
        installed: whether it is on this machine.
        size: bytes of its files, or None if nobody says.
        path: its directory, or None.
    """

    name: str
    source: str
    model_type: str | None
    installed: bool
    size: int | None
    path: str | None

    @property
    def supported(self) -> bool:
        """Whether its architecture is in the registry."""
        return self.model_type in REGISTRY


def merge_rows(local: Iterable[ModelRow], remote: Iterable[ModelRow]) -> list[ModelRow]:
    """One list by name: a remote model whose name a local one has is the same model.

    A catalogue names models as the hub does, `organisation/name`; a directory may carry the last part alone.
    """
    rows = list(local)
    places = {row.name: index for index, row in reversed(list(enumerate(rows)))}
    for row in remote:
        index = places.get(row.name, places.get(row.name.rpartition("/")[2]))
        if index is None:
            rows.append(row)
            continue
        here = rows[index]
        rows[index] = here._replace(source=BOTH, model_type=here.model_type or row.model_type)
    return sorted(rows, key=lambda row: (row.name, row.path or ""))

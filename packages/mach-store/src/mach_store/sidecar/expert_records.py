"""Owns the way from a source checkpoint to its experts' records: which reader serves which layout.

A record is one expert's tensors as MLX packs them, whatever the source's form. A reader holds a few experts
in memory, never a layer.
"""

from __future__ import annotations

from mach.io.exportable import export_problem
from mach.io.inspection import CheckpointInspection
from mach_store.errors import SidecarExportError
from mach_store.sidecar.packing import PackedRecords, Packing
from mach_store.sidecar.raw_records import RawRecords
from mach_store.sidecar.record import ExpertRecords, Record
from mach_store.sidecar.stacked_records import StackedRecords

__all__ = ["ExpertRecords", "Packing", "Record", "open_records"]


def open_records(inspection: CheckpointInspection, packing: Packing | None) -> ExpertRecords:
    """The experts of a checkpoint as records.

    Args:
        inspection: of a checkpoint with a stacked or raw layout.
        packing: pack plain floats (and fp8, which becomes bfloat16 first) so, and accept packed ones only if
            they are so; None keeps what is there, bytes unchanged but for fp8.

    Raises:
        SidecarExportError: the experts cannot be read, as `mach.io.exportable` says, or not be packed so.
    """
    problem = export_problem(inspection)
    if problem is not None:
        raise SidecarExportError(problem)
    stored: ExpertRecords
    stored = StackedRecords(inspection) if inspection.layout == "stacked" else RawRecords(inspection)
    if packing is None:
        return stored
    return PackedRecords(inspection.directory, stored, packing, inspection.adapter)

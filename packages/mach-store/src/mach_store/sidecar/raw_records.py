"""Owns records out of raw checkpoints: their projections parted, turned and decoded into MLX's form.

Which bytes are whose and how they are encoded, `mach.io.raw_experts` has found and checked. Plain floats and
fp4 keep their bits; fp8 becomes bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mach.io.inspection import CheckpointInspection
from mach.io.raw_experts import RawPart, RawWeight, raw_experts
from mach.io.raw_form import FP4_GROUP
from mach.io.sidecar_layout import PROJECTIONS, Quantization, build_schema
from mach_store.errors import SidecarExportError
from mach_store.sidecar.byte_ranges import ByteRanges, read_ahead
from mach_store.sidecar.fp8_blocks import decode_blocks, decode_scales
from mach_store.sidecar.record import Record
from mach_store.stacked_source import DTYPE_NAMES

MXFP4 = Quantization(mode="mxfp4", bits=4, group_size=FP4_GROUP)
_WORD_BYTES = 4
_ELEMENTS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32}


class RawRecords:
    """Records of a per-expert or fused checkpoint."""

    def __init__(self, inspection: CheckpointInspection) -> None:
        """Find every expert's tensors by name; read nothing yet.

        Raises:
            UnsupportedLayoutError: as `raw_experts`.
        """
        self._layers = raw_experts(inspection).layers
        self.num_experts = inspection.shape.num_experts
        self.schemas = {}
        for layer, weights in self._layers.items():
            tensors: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
            for weight in weights:
                for projection in weight.projection.holds:
                    tensors[projection] = [
                        (f"{projection}.{component}", dtype, shape)
                        for component, dtype, shape in _components(weight)
                    ]
            self.schemas[layer] = build_schema(
                [tensor for projection in PROJECTIONS for tensor in tensors[projection]],
                {
                    projection: MXFP4 if weight.encoding == "fp4" else None
                    for weight in weights
                    for projection in weight.projection.holds
                },
            )

    def records(self, layer: int, experts: Sequence[int] | None = None) -> Iterator[Record]:
        """See `ExpertRecords`."""
        weights = self._layers[layer]
        with ByteRanges() as files:

            def read(expert: int) -> Record:
                found: dict[str, list[memoryview]] = {}
                for weight in weights:
                    columns = [
                        _parted(weight, array) for array in _arrays(weight, layer, expert, files).values()
                    ]
                    for index, projection in enumerate(weight.projection.holds):
                        found[projection] = [parts[index] for parts in columns]
                return [data for projection in PROJECTIONS for data in found[projection]]

            yield from read_ahead(read, range(self.num_experts) if experts is None else experts)


def _components(weight: RawWeight) -> list[tuple[str, str, tuple[int, ...]]]:
    """(component, dtype, extents) of each projection that a stored weight holds."""
    rows = weight.rows // len(weight.projection.holds)
    if weight.encoding == "fp4":
        found: list[tuple[str, str, tuple[int, ...]]] = [
            ("weight", "uint32", (rows, weight.columns // 2 // _WORD_BYTES)),
            ("scales", "uint8", (rows, weight.columns // FP4_GROUP)),
        ]
    else:
        stored = weight.parts["weight"].dtype
        dtype = "bfloat16" if weight.encoding == "fp8" else DTYPE_NAMES[stored]
        found = [("weight", dtype, (rows, weight.columns))]
    if "bias" in weight.parts:
        found.append(("bias", DTYPE_NAMES[weight.parts["bias"].dtype], (rows,)))
    return found


def _arrays(weight: RawWeight, layer: int, expert: int, files: ByteRanges) -> dict[str, NDArray[np.generic]]:
    """Component → everything that one expert's stored weight holds, with a row per output."""
    raw = {role: _read(part, expert, files) for role, part in weight.parts.items()}
    found: dict[str, NDArray[np.generic]] = {}
    if weight.encoding == "fp4":
        found["weight"] = raw["weight"].reshape(weight.rows, -1)
        found["scales"] = raw["scale"].reshape(weight.rows, -1)
    elif weight.encoding == "fp8":
        part = weight.parts["scale"]
        scales = decode_scales(raw["scale"], part.dtype).reshape(part.shape)
        if not np.isfinite(scales).all():
            raise SidecarExportError(
                f"{part.start(expert)[0]}: layer {layer}, expert {expert}: the scales of "
                f"{weight.projection.name} hold what is no finite number: fetch the file again"
            )
        codes = raw["weight"].reshape(weight.rows, weight.columns)
        found["weight"] = decode_blocks(codes, scales, weight.block)
    else:
        plain = raw["weight"].view(_ELEMENTS[weight.parts["weight"].dtype])
        if weight.form.axes == "in_out":
            found["weight"] = plain.reshape(weight.columns, weight.rows).T
        else:
            found["weight"] = plain.reshape(weight.rows, weight.columns)
    if "bias" in raw:
        found["bias"] = raw["bias"].view(_ELEMENTS[weight.parts["bias"].dtype]).reshape(weight.rows, 1)
    return found


def _read(part: RawPart, expert: int, files: ByteRanges) -> NDArray[np.uint8]:
    path, offset = part.start(expert)
    return np.frombuffer(files.read(path, offset, part.nbytes), np.uint8)


def _parted(weight: RawWeight, array: NDArray[np.generic]) -> list[memoryview]:
    """The rows of each projection that `array` holds; without a copy where they lie together already."""
    count = len(weight.projection.holds)
    if weight.form.interleaving == "rows":
        parts = [array[index::count] for index in range(count)]
    else:
        parts = np.split(array, count)
    return [np.ascontiguousarray(part).data.cast("B") for part in parts]

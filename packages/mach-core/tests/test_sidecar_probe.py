from collections.abc import Callable
from pathlib import Path

import pytest

from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import LayerFile, Quantization, SidecarLayout, build_schema, dump_layout
from mach.preflight.sidecar_probe import SidecarProbe, probe_sidecar, sidecar_quantization


@pytest.fixture
def probe_with(
    families: dict[str, dict], make_checkpoint: Callable[..., Path]
) -> Callable[..., SidecarProbe]:
    """Probes a sliced checkpoint whose sidecar has two layers of eight experts, unless told otherwise."""

    def make(
        *, model_type: str = "qwen3_moe", layers: tuple[int, ...] = (0, 1), experts: int = 8, missing: int = 0
    ) -> SidecarProbe:
        directory = make_checkpoint(families["qwen3_moe"], {"norm": ("BF16", (4,))})
        sidecar = directory / "expert_sidecar"
        sidecar.mkdir()
        wide, tall = (64, 128), (128, 64)
        shapes = {"gate_proj": wide, "up_proj": wide, "down_proj": tall}
        tensors = [(f"{name}.weight", "bfloat16", shape) for name, shape in shapes.items()]
        schema = build_schema(tensors, dict.fromkeys(("gate_proj", "up_proj", "down_proj")))
        files = tuple(
            LayerFile(
                index=layer,
                file=f"layer_{layer:02d}.bin",
                num_experts=experts,
                stride=schema.nbytes,
                schema=schema,
                checksums=(0,) * experts,
            )
            for layer in layers
        )
        layout = SidecarLayout(model_type=model_type, alignment=16384, layers=files)
        (sidecar / "layout.json").write_bytes(dump_layout(layout))
        for file in files:
            with open(sidecar / file.file, "wb") as handle:
                handle.truncate(file.file_bytes - missing)
        return probe_sidecar(inspect_checkpoint(directory))

    return make


def test_a_complete_sidecar_is_valid(probe_with: Callable[..., SidecarProbe]) -> None:
    found = probe_with()
    assert (found.present, found.valid) == (True, True), found.reason
    assert found.layout is not None
    assert sidecar_quantization(found.layout).label == "bf16"


def test_a_sidecars_packing_is_told_by_its_records() -> None:
    four, six = (Quantization(mode="affine", bits=bits, group_size=64) for bits in (4, 6))
    for by_projection, label in [
        ((four, four, four), "affine (4-bit)"),
        ((four, four, six), "affine (mixed 4/6-bit)"),
        ((four, four, None), "affine (4-bit)"),
    ]:
        names = ("gate_proj", "up_proj", "down_proj")
        schema = build_schema(
            [(f"{name}.weight", "uint32", (4, 8)) for name in names],
            dict(zip(names, by_projection, strict=True)),
        )
        layer = LayerFile(
            index=0, file="layer_00.bin", num_experts=1, stride=16384, schema=schema, checksums=(0,)
        )
        layout = SidecarLayout(model_type="qwen3_moe", alignment=16384, layers=(layer,))
        found = sidecar_quantization(layout)
        assert (found.label, found.uniform) == (label, len(set(by_projection)) == 1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt_oss"}, "model_type 'gpt_oss' differs"),
        ({"layers": (0,)}, "declares other layers than config.json, first layer 1"),
        ({"experts": 7}, "layer 0 has 7 experts, not config.json's 8"),
        ({"missing": 1}, "truncated"),
    ],
)
def test_a_sidecar_of_something_else_is_invalid(
    probe_with: Callable[..., SidecarProbe], change: dict, reason: str
) -> None:
    found = probe_with(**change)
    assert found.valid is False
    assert reason in found.reason

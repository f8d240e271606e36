import mlx.core as mx
import numpy as np
import pytest

from mach.errors import UnsupportedLayoutError
from mach.io.inspection import inspect_checkpoint
from mach.io.sidecar_layout import PROJECTIONS, Quantization
from mach_store.errors import SidecarExportError
from mach_store.sidecar.expert_records import Packing, open_records

HIDDEN, WIDTH, EXPERTS = 256, 128, 8
AFFINE = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
BLOCKS = [("mxfp4", 4, 32), ("nvfp4", 4, 16), ("mxfp8", 8, 32)]
Scheme = tuple[str, int, int] | None


def as_bytes(array: mx.array) -> bytes:
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.array(plain).tobytes()


@pytest.fixture
def stacked(config, write_checkpoint):
    """A function ((layer, projection) → scheme) → directory, and its tensors as MLX writes them."""

    def make(schemes: dict[tuple[int, str], Scheme]):
        fields = config(quantization="none") | {"hidden_size": HIDDEN, "moe_intermediate_size": WIDTH}
        first = next(s for s in schemes.values() if s is not None)
        fields["quantization"] = dict(zip(("mode", "bits", "group_size"), first, strict=True))
        tensors = {}
        for seed, ((layer, projection), scheme) in enumerate(schemes.items()):
            path = f"model.layers.{layer}.mlp.switch_mlp.{projection}"
            shape = (EXPERTS, HIDDEN, WIDTH) if projection == "down_proj" else (EXPERTS, WIDTH, HIDDEN)
            weight = mx.random.normal(shape, key=mx.random.key(seed)).astype(mx.bfloat16)
            if scheme is None:
                tensors[f"{path}.weight"] = weight
                fields["quantization"][path] = False
                continue
            mode, bits, group = scheme
            packed = mx.quantize(weight, group, bits, mode=mode)
            for component, array in zip(("weight", "scales", "biases"), packed, strict=False):
                tensors[f"{path}.{component}"] = array
            if scheme != first:
                fields["quantization"][path] = {"mode": mode, "bits": bits, "group_size": group}
        return write_checkpoint(fields, tensors), tensors

    return make


def everywhere(scheme: Scheme) -> dict[tuple[int, str], Scheme]:
    return {(layer, projection): scheme for layer in range(2) for projection in PROJECTIONS}


def expect(directory, tensors: dict[str, mx.array], schemes: dict[tuple[int, str], Scheme]) -> None:
    source = open_records(inspect_checkpoint(directory), None)
    for layer, schema in source.schemas.items():
        for projection, q in zip(PROJECTIONS, schema.quantization, strict=True):
            scheme = schemes[layer, projection]
            keys = ("mode", "bits", "group_size")
            assert q == (None if scheme is None else Quantization(**dict(zip(keys, scheme, strict=True))))
        for expert, record in enumerate(source.records(layer)):
            for segment, data in zip(schema.segments, record, strict=True):
                name = f"model.layers.{layer}.mlp.switch_mlp.{segment.name}"
                assert bytes(data) == as_bytes(tensors[name][expert]), (name, expert)
                assert tuple(tensors[name].shape[1:]) == segment.shape
        named = {f"model.layers.{layer}.mlp.switch_mlp.{s.name}" for s in schema.segments}
        assert named == {name for name in tensors if f".{layer}." in name}


@pytest.mark.parametrize("scheme", [*AFFINE, *BLOCKS, None], ids=str)
def test_every_way_mlx_packs_is_sliced_byte_for_byte(stacked, scheme) -> None:
    schemes = everywhere(scheme)
    if scheme is None:
        schemes[0, "up_proj"] = ("affine", 4, 64)  # a config with some quantisation
    expect(*stacked(schemes), schemes)


def test_layers_and_projections_may_be_packed_differently(stacked) -> None:
    schemes = everywhere(("affine", 4, 64)) | {
        (0, "down_proj"): ("affine", 6, 32),
        (0, "up_proj"): ("mxfp4", 4, 32),
        (1, "gate_proj"): ("affine", 3, 128),
        (1, "down_proj"): None,
    }
    directory, tensors = stacked(schemes)
    expect(directory, tensors, schemes)


def test_only_what_is_plain_yet_is_packed(stacked) -> None:
    schemes = everywhere(("affine", 4, 64)) | {(1, "down_proj"): None}
    directory, tensors = stacked(schemes)
    inspection = inspect_checkpoint(directory)
    source = open_records(inspection, Packing(bits=4, group_size=None, mode=None))
    assert {q for schema in source.schemas.values() for q in schema.quantization} == {
        Quantization(mode="affine", bits=4, group_size=64)
    }
    names = [segment.name for segment in source.schemas[1].segments]
    expected = mx.quantize(tensors["model.layers.1.mlp.switch_mlp.down_proj.weight"], 64, 4)
    for expert, record in zip((7, 2), source.records(1, [7, 2]), strict=True):
        for component, array in zip(("weight", "scales", "biases"), expected, strict=True):
            assert bytes(record[names.index(f"down_proj.{component}")]) == as_bytes(array[expert])
        kept = tensors["model.layers.1.mlp.switch_mlp.up_proj.weight"][expert]
        assert bytes(record[names.index("up_proj.weight")]) == as_bytes(kept)
    with pytest.raises(SidecarExportError, match="already packed .affine, 4 bits, groups of 64"):
        open_records(inspection, Packing(bits=8, group_size=None, mode=None))


def test_nvfp4_with_a_global_scale_is_refused_by_name(stacked, write_checkpoint, tmp_path) -> None:
    directory, tensors = stacked(everywhere(("nvfp4", 4, 16)))
    name = "model.layers.1.mlp.switch_mlp.up_proj.global_scale"
    mx.eval(tensors)
    mx.save_safetensors(str(directory / "model.safetensors"), tensors | {name: mx.ones((EXPERTS,))})
    with pytest.raises(UnsupportedLayoutError, match=f"{name}: nvfp4 with a global scale"):
        inspect_checkpoint(directory)

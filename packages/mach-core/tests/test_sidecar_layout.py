import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach.io.sidecar_layout import (
    DTYPE_BYTES,
    MAX_LAYOUT_BYTES,
    PROJECTIONS,
    QUANTIZATION_MODES,
    LayerFile,
    Quantization,
    SidecarLayout,
    SidecarLayoutError,
    build_schema,
    check_files,
    dump_layout,
    layer_file_name,
    padded,
    parse_layout,
    read_layout,
)


def make_layout(
    *, layers=(0, 1), experts: int = 3, alignment: int = 512, quantized: bool = True
) -> SidecarLayout:
    q = Quantization(mode="affine", bits=4, group_size=32) if quantized else None
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for projection in PROJECTIONS:
        if quantized:
            tensors.append((f"{projection}.weight", "uint32", (64, 8)))
            tensors.append((f"{projection}.scales", "bfloat16", (64, 2)))
            tensors.append((f"{projection}.biases", "bfloat16", (64, 2)))
        else:
            tensors.append((f"{projection}.weight", "bfloat16", (64, 64)))
    schema = build_schema(tensors, dict.fromkeys(PROJECTIONS, q))
    return SidecarLayout(
        model_type="qwen3_moe",
        alignment=alignment,
        layers=tuple(
            LayerFile(
                index=index,
                file=layer_file_name(index),
                num_experts=experts,
                stride=padded(schema.nbytes, alignment),
                schema=schema,
                checksums=tuple(range(index, index + experts)),
            )
            for index in layers
        ),
    )


@st.composite
def layouts(draw) -> SidecarLayout:
    alignment = 1 << draw(st.integers(0, 16))
    layers = []
    for index in sorted(draw(st.sets(st.integers(0, 200), min_size=1, max_size=4))):
        quantization = {
            projection: draw(
                st.none()
                | st.builds(
                    Quantization,
                    mode=st.sampled_from(QUANTIZATION_MODES),
                    bits=st.integers(1, 8),
                    group_size=st.integers(1, 128),
                )
            )
            for projection in PROJECTIONS
        }
        tensors = []
        for projection in PROJECTIONS:
            extra = draw(st.sets(st.sampled_from(("scales", "biases", "bias"))))
            for component in ("weight", *sorted(extra)):
                shape = draw(st.lists(st.integers(1, 64), min_size=1, max_size=3))
                dtype = draw(st.sampled_from(sorted(DTYPE_BYTES)))
                tensors.append((f"{projection}.{component}", dtype, tuple(shape)))
        schema = build_schema(tensors, quantization)
        sums = draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=4))
        layers.append(
            LayerFile(
                index=index,
                file=layer_file_name(index),
                num_experts=len(sums),
                stride=padded(schema.nbytes, alignment),
                schema=schema,
                checksums=tuple(sums),
            )
        )
    model_type = draw(st.text(max_size=20))
    return SidecarLayout(model_type=model_type, alignment=alignment, layers=tuple(layers))


@settings(deadline=None, max_examples=60)
@given(layouts())
def test_what_is_dumped_is_parsed_back(layout) -> None:
    raw = dump_layout(layout)
    assert parse_layout(raw) == layout
    assert dump_layout(parse_layout(raw)) == raw
    assert raw.endswith(b"}\n")


def places(value, path=()):
    """Every path to a value inside a JSON document."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from places(item, (*path, i))


DOCUMENT = json.loads(dump_layout(make_layout()))
PLACES = sorted(places(DOCUMENT), key=str)
STRANGE = st.sampled_from(
    [None, True, False, 0, -1, 1, 3, 2**31, 2**62, 2**70, 1.5, float("nan"), float("inf")]
    + ["", "x", "layer_00.bin", "../../etc/passwd", "\ud800", [], [[]], [-1], [0], [2**30] * 3, [True], {}]
    + [{"a": 1}]
)
json_values = st.recursive(
    STRANGE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def mutated(document, path, action, value):
    """`document` with the value at `path` replaced, deleted, or doubled."""
    copy = json.loads(json.dumps(document))
    if not path:
        return value
    owner = copy
    for step in path[:-1]:
        owner = owner[step]
    if action == "delete":
        del owner[path[-1]]
    elif action == "double" and isinstance(owner, list):
        owner.append(owner[path[-1]])
    else:
        owner[path[-1]] = value
    return copy


@settings(deadline=None, max_examples=600)
@given(
    path=st.sampled_from(PLACES),
    action=st.sampled_from(["replace", "delete", "double"]),
    value=json_values,
    second=st.none() | st.tuples(st.sampled_from(PLACES[1:8]), json_values),
)
def test_a_mutated_document_raises_nothing_but_the_layout_error(path, action, value, second) -> None:
    document = mutated(DOCUMENT, path, action, value)
    if second is not None and isinstance(document, dict) and second[0][0] in document:
        document = dict(document) | {second[0][0]: second[1]}
    try:
        parse_layout(json.dumps(document).encode(), "here/layout.json")
    except SidecarLayoutError as error:
        assert str(error).startswith("here/layout.json")
        assert error.path == "here/layout.json"
        str(error).encode()


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_bytes_that_are_no_layout_raise_nothing_but_the_layout_error(raw) -> None:
    with pytest.raises(SidecarLayoutError):
        parse_layout(raw)


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, len(dump_layout(make_layout())) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_nothing_but_a_value(at, byte) -> None:
    raw = bytearray(dump_layout(make_layout()))
    raw[at] = byte
    try:
        layout = parse_layout(bytes(raw))
    except SidecarLayoutError:
        return
    for layer in layout.layers:
        assert layer.file == layer_file_name(layer.index)
        assert layer.stride == padded(layer.schema.nbytes, layout.alignment)
        assert len(layer.checksums) == layer.num_experts


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("magic",), "LME", r"layout.json: magic is not 'LME-EXPERT-SIDECAR': this is not an expert sidecar"),
        (("version",), 2, r"version 2; this release reads .* version 1: export the sidecar again"),
        (("schema",), "other", "schema is 'other' version 1"),
        (("checksum",), "md5", "checksum must be 'crc32'"),
        (("alignment",), 1000, "alignment is 1000, not a power of two"),
        (("layers",), [], "layers declares no layer"),
        (("layers", 0, "index"), 1, r"layers\[0\].file must be 'layer_01.bin'"),
        (("layers", 0, "file"), "../layer_00.bin", r"layers\[0\].file must be 'layer_00.bin'"),
        (("layers", 1, "num_experts"), 4, r"layers\[1\].checksums has 3 entries for 4 experts"),
        (("layers", 1, "checksums"), [1, 2, 1 << 32], r"layers\[1\].checksums holds a value"),
        (("layers", 1, "checksums"), [1, 2], r"layers\[1\].checksums has 2 entries for 3 experts"),
        (("layers", 0, "record_stride"), 4096, r"layers\[0\].record_stride must be"),
        (("layers", 0, "record_bytes"), 1, r"layers\[0\].record_bytes is not the segments' sum"),
        (("layers", 0, "segments", 1, "offset"), 1, r"layers\[0\].segments gate_proj.scales starts at 1"),
        (("layers", 0, "segments", 1, "nbytes"), 1, r"layers\[0\].segments\[1\].nbytes must be 256"),
        (("layers", 0, "segments", 0, "dtype"), "int4", r"segments\[0\].dtype 'int4' is none of"),
        (("layers", 0, "segments", 0, "shape"), [], r"segments\[0\].shape \[\] is not one to three"),
        (("layers", 0, "segments", 0, "name"), "gate", r"segments\[0\].name 'gate' is not a known segment"),
        (("layers", 0, "quantization", "up_proj", "mode"), "q4", r"up_proj.mode 'q4' is none of affine"),
    ],
)
def test_a_refusal_names_the_field(path, value, message) -> None:
    document = mutated(DOCUMENT, path, "replace", value)
    with pytest.raises(SidecarLayoutError, match=message) as caught:
        parse_layout(json.dumps(document).encode())
    assert caught.value.field


def test_layers_must_be_sorted_and_named_once() -> None:
    for order in ([1, 0], [0, 0]):
        document = dict(DOCUMENT) | {"layers": [DOCUMENT["layers"][i] for i in order]}
        with pytest.raises(SidecarLayoutError, match="sorted by index, without repeats"):
            parse_layout(json.dumps(document).encode())


def test_what_is_not_json_or_too_large_is_refused(tmp_path) -> None:
    with pytest.raises(SidecarLayoutError, match="not valid JSON .*export the sidecar again"):
        parse_layout(b"{")
    with pytest.raises(SidecarLayoutError, match="not valid JSON"):
        parse_layout(b"[" * 100_000)
    with open(tmp_path / "layout.json", "wb") as handle:
        handle.truncate(MAX_LAYOUT_BYTES + 2)
    with pytest.raises(SidecarLayoutError, match="larger than"):
        read_layout(tmp_path)


def test_a_missing_layout_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(SidecarLayoutError, match=r"cannot be read .*tools/export_expert_sidecar.py"):
        read_layout(tmp_path)


def test_file_sizes_are_compared_with_the_layout(tmp_path) -> None:
    layout = make_layout(experts=3)
    for layer in layout.layers:
        with open(tmp_path / layer.file, "wb") as handle:
            handle.truncate(layer.file_bytes)
    check_files(layout, tmp_path)
    path = tmp_path / "layer_01.bin"
    stride = layout.layers[1].stride
    os.truncate(path, 2 * stride + 5)
    with pytest.raises(SidecarLayoutError, match=r"layer_01.bin: truncated: .* layer 1, expert 2 and"):
        check_files(layout, tmp_path)
    os.truncate(path, 3 * stride + 1)
    with pytest.raises(SidecarLayoutError, match=r"layer_01.bin: .* do not belong together"):
        check_files(layout, tmp_path)
    path.unlink()
    with pytest.raises(SidecarLayoutError, match=r"layer_01.bin: layer 1 is declared"):
        check_files(layout, tmp_path)


def test_a_layer_is_found_by_its_model_index() -> None:
    layout = make_layout(layers=(2, 5))
    assert layout.layer(5).file == "layer_05.bin"
    with pytest.raises(KeyError):
        layout.layer(3)
    assert layout.record_bytes_total == 6 * layout.layers[0].schema.nbytes


@pytest.mark.parametrize(("nbytes", "alignment", "expected"), [(1, 1, 1), (0, 512, 0), (513, 512, 1024)])
def test_padding_rounds_up(nbytes, alignment, expected) -> None:
    assert padded(nbytes, alignment) == expected


def test_another_schema_without_a_version_is_refused() -> None:
    document = dict(DOCUMENT) | {"schema": "lme-expert-sidecar-v2"}
    del document["version"]
    with pytest.raises(SidecarLayoutError, match="version is missing"):
        parse_layout(json.dumps(document).encode())

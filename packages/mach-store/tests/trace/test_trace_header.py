import msgspec
import pytest

from mach_store.trace.trace_header import TraceHeader


def test_a_header_comes_back_from_its_json(make_header) -> None:
    header = make_header(layers=[0, 3], pools=[1, 0])
    assert header.contradiction() == ""
    assert msgspec.json.decode(msgspec.json.encode(header), type=TraceHeader) == header
    assert (header.pool_count, header.id_bytes) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "format: 'other' is not"),
        ({"version": 2}, "version: 2 is not 1"),
        ({"layers": []}, "layers: 0 of them"),
        ({"layers": [-1, 2, 3]}, "layers: do not ascend"),
        ({"layers": [1, 1, 2]}, "layers: do not ascend"),
        ({"experts": 0}, "experts: 0 is not within"),
        ({"experts": 65537}, "experts: 65537 is not within"),
        ({"experts": 65536, "layers": list(range(17))}, "experts, layers: 65536 × 17 are more"),
        ({"top_k": 0}, "top_k: 0 is not within"),
        ({"top_k": 9}, "top_k: 9 is not within 1…8"),
        ({"record_bytes": [1, 1]}, "record_bytes: has 2 entries for 3 layers"),
        ({"slot_bytes": [1] * 4}, "slot_bytes: has 4 entries"),
        ({"slot_bytes": [1, 0, 1]}, "record_bytes, slot_bytes: not all within"),
        ({"record_bytes": [1, 1, 1 << 41]}, "record_bytes, slot_bytes: not all within"),
        ({"pools": [0]}, "pools: has 1 entries"),
        ({"pools": [1, 1, 1]}, "pools: are not numbered"),
        ({"pools": [0, 2, 0]}, "pools: are not numbered"),
        ({"pools": [0, -1, 0]}, "pools: are not numbered"),
        ({"pools": [0, 1 << 60, 0]}, "pools: are not numbered"),
    ],
)
def test_what_cannot_be_is_named_by_field(make_header, fields, message) -> None:
    assert make_header(**fields).contradiction().startswith(message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bank_slots": [3, 3]}, "run.bank_slots"),
        ({"bank_slots": [0]}, "run.bank_slots"),
        ({"transient_min_tokens": 0}, "run.transient_min_tokens"),
        ({"narrow": [True, False]}, "run.narrow: has 2 entries for 1 pools"),
        ({"scratch_experts": 0}, "run.transient_min_tokens, run.scratch_experts"),
    ],
)
def test_what_cannot_be_of_the_run_is_named_too(make_header, fields, message) -> None:
    run = msgspec.structs.replace(make_header().run, **fields)
    assert make_header(run=run).contradiction().startswith(message)

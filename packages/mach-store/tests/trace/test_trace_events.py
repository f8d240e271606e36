import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mach_store.trace.trace_events import (
    COUNT,
    EVENT,
    AnswerBegan,
    AnswerEnded,
    ModelPass,
    decode,
    encode,
    encoded_bytes,
)

SHAPES = st.tuples(st.integers(1, 5), st.sampled_from([1, 2, 8, 255, 256, 257, 4096, 65536]))


@settings(max_examples=150, deadline=None)
@given(shape=SHAPES, data=st.data())
def test_events_come_back_as_they_were(make_header, plain, shape, data) -> None:
    layers, experts = shape
    top_k = data.draw(st.integers(1, min(4, experts)))
    header = make_header(layers=list(range(layers)), experts=experts, top_k=top_k)
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))

    def one(kind, tokens, computed, flag):
        if kind == "began":
            return AnswerBegan(tokens)
        if kind == "ended":
            return AnswerEnded(flag)
        ids = [
            random.integers(0, experts, (tokens, top_k)).astype(np.uint16)
            for _ in range(min(computed, layers))
        ]
        return ModelPass(flag, ids)

    events = data.draw(
        st.lists(
            st.builds(
                one,
                st.sampled_from(["began", "pass", "pass", "ended"]),
                st.integers(1, 9),
                st.integers(1, 5),
                st.booleans(),
            ),
            max_size=12,
        )
    )
    written = encode(events, header)
    assert len(written) == COUNT.size + sum(encoded_bytes(event, header) for event in events)
    assert [plain(event) for event in decode(written, header)] == [plain(event) for event in events]


@pytest.mark.parametrize(("experts", "per_id"), [(256, 1), (257, 2)])
def test_an_id_takes_one_byte_while_that_holds_them(make_header, make_pass, experts, per_id) -> None:
    header = make_header(experts=experts, top_k=8)
    one = make_pass(header, 10, 0)
    assert encoded_bytes(one, header) == EVENT.size + 3 * 10 * 8 * per_id


def test_a_tokens_ids_come_back_ascending(make_header) -> None:
    header = make_header(layers=[0], top_k=3)
    ids = np.array([[7, 0, 3], [2, 1, 6]], np.uint16)
    (event,) = decode(encode([ModelPass(False, [ids])], header), header)
    assert event.ids[0].tolist() == [[0, 3, 7], [1, 2, 6]]


def block(*table: tuple[int, int, int, int], ids: bytes = b"", count: int | None = None) -> bytes:
    number = len(table) if count is None else count
    return COUNT.pack(number) + b"".join(EVENT.pack(*entry) for entry in table) + ids


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "events: 0 bytes hold no count"),
        (b"\1\0\0", "events: 3 bytes hold no count"),
        (block(count=1), "events: 1 do not fit into 4 bytes"),
        (block(count=(1 << 32) - 1), "events: 4294967295 do not fit"),
        (block((0, 0, 0, 0)), "event 0: kind 0 is unknown"),
        (block((1, 0, 0, 5), (4, 0, 0, 0)), "event 1: kind 4 is unknown"),
        (block((1, 1, 0, 5)), "event 0: flag 1 is unknown"),
        (block((2, 2, 3, 1), ids=bytes(6)), "event 0: flag 2 is unknown"),
        (block((1, 0, 1, 5)), "event 0: fields that must be 0 are not"),
        (block((3, 0, 0, 5)), "event 0: fields that must be 0 are not"),
        (block((2, 0, 4, 1), ids=bytes(8)), "a pass of 1 tokens over 4 of 3 layers"),
        (block((2, 0, 0, 1)), "a pass of 1 tokens over 0 of 3 layers"),
        (block((2, 0, 3, 0)), "a pass of 0 tokens over 3 of 3 layers"),
        (block((2, 0, 3, 1), ids=bytes(5)), "ids: 5 bytes for 6 ids of 1 bytes"),
        (block((2, 0, 3, 1), ids=bytes(7)), "ids: 7 bytes for 6 ids"),
        (block((2, 0, 3, (1 << 32) - 1), ids=bytes(6)), "ids: 6 bytes for 25769803770 ids"),
        (block((2, 0, 3, 1), ids=b"\0\1\0\1\0\10"), "ids: expert 8 of 8"),
    ],
)
def test_bytes_that_contradict_themselves_are_refused_by_field(make_header, data, message) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data, make_header())

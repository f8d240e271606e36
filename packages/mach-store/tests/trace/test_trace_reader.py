import os

import msgspec
import pytest

from mach_store.errors import TraceFormatError
from mach_store.trace import trace_blocks as blocks
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, encode
from mach_store.trace.trace_header import TraceEnding
from mach_store.trace.trace_reader import TraceReader


def test_a_trace_is_read_as_it_was_written(small_trace, read, some_events, plain, make_header) -> None:
    events, reader = read(small_trace)
    assert events == [plain(event) for event in some_events]
    assert reader.header == make_header()
    assert reader.ending == TraceEnding(ended="finished", answers=2, passes=5, routes=52)
    assert reader.loss == ""


def test_truncation_at_every_byte_keeps_the_whole_blocks_and_is_told(
    small_trace, read, some_events, plain
) -> None:
    data = small_trace.read_bytes()
    header_end = len(blocks.MAGIC) + blocks.HEAD_BYTES
    header_end += blocks.parse_head(data[len(blocks.MAGIC) : header_end], 0).stored
    kept = set()
    for length in range(len(data)):
        small_trace.write_bytes(data[:length])
        if length < header_end:
            with pytest.raises(TraceFormatError, match="small.trace: (is no routing trace|block 0: )"):
                read(small_trace)
            continue
        events, reader = read(small_trace)
        assert events == [plain(event) for event in some_events[: len(events)]]
        assert reader.ending is None
        assert reader.loss
        kept.add(len(events))
    assert kept == {0, 5, 9}


def test_a_flipped_bit_anywhere_is_an_error_that_names_file_and_block(small_trace, read) -> None:
    data = small_trace.read_bytes()
    for at in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << at % 8
        small_trace.write_bytes(damaged)
        with pytest.raises(TraceFormatError) as caught:
            read(small_trace)
        assert caught.value.path == str(small_trace)
        place = "is no routing trace" if at < 64 else f"block {caught.value.block}: "
        assert str(caught.value).startswith(f"{small_trace}: {place}")


@pytest.fixture
def forged(tmp_path, make_header):
    """A function (blocks as (kind, plain), rest) → a file of them."""

    def write(*parts: tuple[int, bytes], rest: bytes = b"", header: bytes | None = None) -> str:
        first = msgspec.json.encode(make_header()) if header is None else header
        data = blocks.MAGIC + blocks.pack_block(blocks.HEADER, 0, first)
        for number, (kind, plain) in enumerate(parts, 1):
            data += blocks.pack_block(kind, number, plain)
        path = tmp_path / "forged.trace"
        path.write_bytes(data + rest)
        return path

    return write


def ending(**fields) -> tuple[int, bytes]:
    values = {"ended": "finished", "answers": 0, "passes": 0, "routes": 0} | fields
    return blocks.ENDING, msgspec.json.encode(values)


def refused(read, path, message: str, block: int) -> None:
    with pytest.raises(TraceFormatError, match=message) as caught:
        read(path)
    assert caught.value.block == block
    assert str(path) in str(caught.value)


def test_a_forged_order_of_events_is_refused(read, forged, make_header, make_pass) -> None:
    header = make_header()

    def of(*events):
        return blocks.EVENTS, encode(list(events), header)

    began, ended, one = AnswerBegan(1), AnswerEnded(True), make_pass(header, 1, 0)
    refused(read, forged(of(one)), "a pass outside of any answer", 1)
    refused(read, forged(of(ended)), "the end of an answer that did not begin", 1)
    refused(read, forged(of(began), of(began)), "an answer begins within another", 2)
    refused(read, forged((blocks.HEADER, b"{}")), "a second header", 1)
    refused(read, forged(of(began, one), ending(answers=1, passes=1, routes=5)), "counts: ", 2)
    refused(read, forged(ending(), rest=b"x"), "1 bytes follow the last block", 1)
    refused(read, forged((blocks.EVENTS, b"\1")), "1 bytes hold no count", 1)
    refused(read, forged(ending(ended="tired")), "TraceEnding: Invalid enum value 'tired'", 1)
    refused(read, forged((blocks.ENDING, b"\xff")), "TraceEnding: ", 1)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{}", "TraceHeader: Object missing required field"),
        (b"[]", "TraceHeader: Expected `object`"),
        (b"\xff\xfe", "TraceHeader: "),
    ],
)
def test_a_header_that_is_none_is_refused(read, forged, header, message) -> None:
    refused(read, forged(header=header), message, 0)


def test_header_fields_are_checked_and_unknown_ones_refused(read, forged, header_json) -> None:
    refused(read, forged(header=header_json(version=9)), "version: 9 is not 1, the only one", 0)
    refused(read, forged(header=header_json(experts="many")), r"TraceHeader: Expected `int`.*experts", 0)
    refused(read, forged(header=header_json(colour="red")), "unknown field `colour`", 0)
    refused(read, forged(header=header_json(top_k=99)), "top_k: 99 is not within 1…8", 0)


def test_the_first_block_must_be_the_header(read, tmp_path) -> None:
    path = tmp_path / "other.trace"
    path.write_bytes(blocks.MAGIC + blocks.pack_block(blocks.EVENTS, 0, b"\0\0\0\0"))
    refused(read, path, "the first block is not the header", 0)


def test_other_files_are_no_traces(read, tmp_path) -> None:
    for data in (b"", b"MACH", b"PK\3\4" + bytes(100)):
        path = tmp_path / "other"
        path.write_bytes(data)
        refused(read, path, "is no routing trace of mach", 0)
    with pytest.raises(TraceFormatError, match="nothing: cannot be read .No such file or directory"):
        TraceReader(str(tmp_path / "nothing"))
    with pytest.raises(TraceFormatError, match="cannot be read .Is a directory"):
        TraceReader(str(tmp_path))


def test_a_file_that_shrinks_while_it_is_read_is_an_error(forged, make_header, make_pass) -> None:
    header = make_header()
    events = [AnswerBegan(1), make_pass(header, 20_000, 0)]
    path = forged((blocks.EVENTS, encode(events, header)))
    with TraceReader(str(path)) as reader:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(TraceFormatError, match="became shorter while it was read"):
            list(reader.events())

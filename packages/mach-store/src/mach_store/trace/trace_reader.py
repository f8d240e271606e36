"""Owns the reading of routing traces, which may be hostile, damaged or broken off."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, NoReturn, TypeVar

import msgspec

from mach_store.errors import TraceFormatError
from mach_store.trace import trace_blocks as blocks
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, Event, ModelPass, decode
from mach_store.trace.trace_header import TraceEnding, TraceHeader

_Struct = TypeVar("_Struct", TraceHeader, TraceEnding)


class TraceReader:
    """A trace, block by block. Use as a context manager.

    A recording that was killed, or met a full disk, ends within a block or without its last one. All whole
    blocks are read, and `loss` says so; anything else that is wrong with the bytes is an error.

    Attributes:
        path: the file.
        header: what the trace says of itself.
        ending: the last block, once `events` has come to it; None where there is none.
        loss: what is missing at the end, once `events` has come to it; empty where nothing is.
    """

    def __init__(self, path: str) -> None:
        """Open `path` and read its header.

        Raises:
            TraceFormatError: it cannot be opened, or it is no trace.
        """
        self.path = path
        self.ending: TraceEnding | None = None
        self.loss = ""
        self._number = -1
        try:
            self._file: BinaryIO = open(path, "rb")
            self._left = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise TraceFormatError(f"{path}: cannot be read ({error.strerror})", path=path) from error
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TraceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def events(self) -> Iterator[Event]:
        """Everything that was recorded, in its order; to be iterated over once.

        Raises:
            TraceFormatError: a block is not what was written; those before it have been given.
        """
        counts, answering = [0, 0, 0], False
        while self._left:
            block = self._next_block()
            if block is None:
                return
            kind, plain = block
            if kind == blocks.ENDING:
                self.ending = self._parse(plain, TraceEnding)
                if self._left:
                    self._refuse(f"{self._left} bytes follow the last block")
                found = TraceEnding(
                    ended=self.ending.ended, answers=counts[0], passes=counts[1], routes=counts[2]
                )
                if found != self.ending:
                    self._refuse(f"counts: {self.ending} does not fit the blocks, which make {found}")
                return
            if kind != blocks.EVENTS:
                self._refuse("kind: a second header")
            try:
                events = decode(plain, self.header)
            except ValueError as error:
                self._refuse(str(error))
            for event in events:
                match event:
                    case AnswerBegan():
                        if answering:
                            self._refuse("events: an answer begins within another")
                        counts[0] += 1
                        answering = True
                    case ModelPass():
                        if not answering:
                            self._refuse("events: a pass outside of any answer")
                        counts[1] += 1
                        counts[2] += sum(ids.size for ids in event.ids)
                    case AnswerEnded():
                        if not answering:
                            self._refuse("events: the end of an answer that did not begin")
                        answering = False
                yield event
        self.loss = "the recording did not come to its end: whatever followed is lost"

    def _read_header(self) -> TraceHeader:
        magic = self._file.read(len(blocks.MAGIC))
        self._left -= len(magic)
        if magic != blocks.MAGIC:
            raise TraceFormatError(f"{self.path}: is no routing trace of mach", path=self.path)
        block = self._next_block()
        if block is None:
            self._refuse("the header is cut off")
        kind, plain = block
        if kind != blocks.HEADER:
            self._refuse("kind: the first block is not the header")
        header = self._parse(plain, TraceHeader)
        contradiction = header.contradiction()
        if contradiction:
            self._refuse(contradiction)
        return header

    def _next_block(self) -> tuple[int, bytes] | None:
        """Kind and plain bytes of the next block; None, with a `loss`, where the file ends within it."""
        self._number += 1
        if self._left < blocks.HEAD_BYTES:
            self._lose("its head")
            return None
        try:
            head = blocks.parse_head(self._take(blocks.HEAD_BYTES), self._number)
            if head.stored > self._left:
                self._lose(f"its bytes: {self._left} of {head.stored} are there")
                return None
            plain = blocks.unpack_block(head, self._take(head.stored))
        except ValueError as error:
            self._refuse(str(error))
        return head.kind, plain

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        self._left -= count
        if len(data) != count:
            self._refuse("the file became shorter while it was read")
        return data

    def _lose(self, where: str) -> None:
        self.loss = f"block {self._number} is cut off within {where}; it and whatever followed is lost"
        self._left = 0

    def _parse(self, plain: bytes, kind: type[_Struct]) -> _Struct:
        try:
            return msgspec.json.decode(plain, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._refuse(f"{kind.__name__}: {error}")

    def _refuse(self, why: str) -> NoReturn:
        raise TraceFormatError(
            f"{self.path}: block {self._number}: {why}: the file is damaged, or not from this program",
            path=self.path,
            block=self._number,
        )

"""The C interface, through ctypes and from a C program."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import liblme_expert_io
import lme_mlx_pread_ext
from liblme_expert_io import ChecksumError, ReadError, library, read_records

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc) on this machine")


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("scattered", [False, True])
def test_both_doors_put_the_same_bytes_into_the_same_places(record_file, direct, scattered) -> None:
    file = record_file()
    widen = [False, True, False, True, True, False]
    arrays = [
        mx.zeros((8, n // 2), mx.float32) if w else mx.zeros((8, n), mx.uint8)
        for n, w in zip(file.sizes, widen, strict=True)
    ]
    mx.eval(arrays)
    banks = [bytearray(8 * n * (2 if w else 1)) for n, w in zip(file.sizes, widen, strict=True)]
    slots = [5, 0, 3]
    fd = file.open_direct() if direct else os.dup(file.fd)
    offsets = sum((file.segment_offsets(n) if scattered else [file.offsets[n]] for n in (1, 4, 2)), [])
    crcs = [file.crcs[n] for n in (1, 4, 2)]
    plan = lme_mlx_pread_ext.ScatterPlan(arrays, file.sizes, widen)
    fds = [fd] * len(offsets)
    counts = {
        plan.read(slots, fds, offsets, crcs, direct=direct),
        read_records(banks, file.sizes, slots, fds, offsets, crcs, widen=widen, direct=direct),
    }
    os.close(fd)
    assert counts == {3 * file.record_bytes}
    assert [np.array(array).tobytes() for array in arrays] == [bytes(bank) for bank in banks]


def test_any_writable_buffer_may_be_a_bank(record_file) -> None:
    file = record_file(count=2, sizes=[64, 32])
    first, second = np.zeros((4, 8), np.float64), bytearray(4 * 32)
    read_records([first, second], file.sizes, [2], [file.fd], [file.offsets[1]], file.crcs[1:])
    assert first[2].tobytes() + bytes(second[64:96]) == file.records[1]


def test_a_bank_that_cannot_be_written_is_refused(record_file) -> None:
    file = record_file(count=1, sizes=[64])
    with pytest.raises(TypeError, match="not writable|read-only"):
        read_records([bytes(64)], [64], [0], [file.fd], [0])
    with pytest.raises(TypeError, match="contiguous"):
        read_records([np.zeros((2, 128), np.uint8)[:, ::2]], [64], [0], [file.fd], [0])


def test_wrong_arguments_are_refused_before_the_first_byte(record_file) -> None:
    file = record_file(count=4, sizes=[64])
    bank = bytearray(4 * 64)
    fd = file.fd
    for arguments, kind, message in [
        (([bank], [64], [4], [fd], [0]), IndexError, r"slots\[0\] is 4"),
        (([bank], [64], [1, 1], [fd] * 2, [0, 0]), ValueError, "named twice"),
        (([bank], [64], [1], [-1], [0]), ValueError, r"fds\[0\] is -1"),
        (([bank], [64], [1], [fd], [-5]), ValueError, r"offsets\[0\] is -5"),
        (([bank], [64], [1], [fd], [1 << 64]), ValueError, "offsets holds a number"),
        (([bank], [64], [1], [fd], [0], [-1]), ValueError, "crcs holds a number"),
        (([bank], [64], [1], [fd], [0], []), ValueError, "0 crcs"),
        (([bank], [64], [1], [fd, fd], [0, 0]), ValueError, "2 fds"),
        (([bank], [63], [1], [fd], [0]), ValueError, "no multiple|on disk fill"),
        (([bank], [0], [1], [fd], [0]), ValueError, "at least 1"),
        (([bank], [512], [0], [fd], [0]), ValueError, "slot_count is 0"),
        (([bank, bytearray(64)], [64, 64], [0], [fd], [0]), ValueError, "fill 64"),
        (([], [], [0], [fd], [0]), ValueError, "0 banks"),
    ]:
        with pytest.raises(kind, match=message):
            read_records(*arguments)
    with pytest.raises(ValueError, match="threads is 100"):
        read_records([bank], [64], [1], [fd], [0], threads=100)
    assert not any(bank)


def test_errors_carry_the_same_fields_as_the_other_door(record_file) -> None:
    file = record_file(count=2, sizes=[1000, 500])
    banks = [bytearray(2000), bytearray(1000)]
    with pytest.raises(ChecksumError) as wrong:
        read_records(banks, file.sizes, [0, 1], [file.fd] * 2, file.offsets, [file.crcs[0], 7])
    assert (wrong.value.job, wrong.value.expected, wrong.value.actual) == (1, 7, file.crcs[1])
    os.truncate(file.path, file.offsets[1] + 1100)
    with pytest.raises(ReadError) as short:
        read_records(banks, file.sizes, [0, 1], [file.fd] * 2, file.offsets)
    assert (short.value.job, short.value.segment, short.value.got, short.value.wanted) == (1, 1, 100, 500)
    assert short.value.offset == file.offsets[1] + 1000


def test_the_structs_are_those_of_the_header() -> None:
    header = (liblme_expert_io.include_path() / "lme_expert_io.h").read_text()
    for name, struct in [
        ("segment", library._Segment),
        ("batch", library._Batch),
        ("failure", library._Failure),
    ]:
        body = re.search(
            rf"typedef struct lme_expert_io_{name} {{(.*?)}} lme_expert_io_{name};", header, re.DOTALL
        )
        assert body is not None
        code = re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL)
        assert re.findall(r"(\w+)(?:\[\d+\])?;", code) == [field[0] for field in struct._fields_]


@needs_compiler
def test_a_c_program_reads_a_record_through_the_header(tmp_path: Path) -> None:
    program = tmp_path / "read_record"
    built = subprocess.run(
        [
            COMPILER, "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror",
            str(Path(__file__).with_name("read_record.c")),
            f"-I{liblme_expert_io.include_path()}",
            str(liblme_expert_io.library_path()),
            f"-Wl,-rpath,{liblme_expert_io.library_path().parent}",
            "-o", str(program),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program, tmp_path / "record.bin"], capture_output=True, text=True, timeout=30)
    assert (ran.returncode, ran.stdout) == (0, "all good\n"), ran.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
@pytest.mark.parametrize("direct", [False, True])
def test_interrupted_and_short_reads_are_continued(record_file, tmp_path: Path, direct) -> None:
    shim = tmp_path / "stuttering_read.so"
    source = Path(__file__).with_name("stuttering_read.c")
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-Wall", "-Werror", str(source), "-o", str(shim)], check=True
    )
    file = record_file(count=6, sizes=[70_000, 3, 9000, 20_001])
    if direct:
        os.close(file.open_direct())
    script = """
import os, sys
from liblme_expert_io import read_records
path, direct, sizes, offsets, crcs = sys.argv[1], *map(eval, sys.argv[2:])
fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
banks = [bytearray(6 * n) for n in sizes]
for _ in range(10):
    read_records(banks, sizes, range(6), [fd] * 6, offsets, crcs, direct=direct, threads=3)
sys.stdout.buffer.write(b"".join(bytes(b[5 * n:]) for b, n in zip(banks, sizes)))
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            file.path,
            str(direct),
            str(file.sizes),
            str(file.offsets),
            str(file.crcs),
        ],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == file.records[5]
    assert re.search(rb"stuttered [1-9]\d+ times", done.stderr)

import pickle

import pytest

from liblme_expert_io import ChecksumError, ExpertIOError, ReadError


def test_errors_have_one_root_and_are_what_callers_expect() -> None:
    assert issubclass(ReadError, (ExpertIOError, OSError)) and issubclass(ReadError, OSError)
    assert issubclass(ChecksumError, ExpertIOError) and issubclass(ChecksumError, ValueError)


@pytest.mark.parametrize("error", [ReadError(3, 1, 5, 4096, 100, 20), ChecksumError(2, 1, 255)])
def test_errors_survive_a_trip_to_another_process(error: ExpertIOError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_messages_tell_what_happened_and_what_to_do() -> None:
    assert str(ReadError(3, 1, 5, 4096, 100, 20)) == (
        "job 3, segment 1: 20 of 100 bytes at offset 4096: Input/output error"
    )
    assert "truncated" in str(ReadError(3, 1, 0, 4096, 100, 20))
    assert "0x000000ff and should be 0x00000001" in str(ChecksumError(2, 1, 255))

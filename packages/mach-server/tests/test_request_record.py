import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_server.request_record import RequestRecord, request_id

MADE = re.compile(r"req_[0-9a-f]{32}")


@pytest.mark.parametrize("given_id", [b"a", b"trace-1.2_B", b"x" * 128])
def test_a_client_s_own_id_is_kept(given_id: bytes) -> None:
    assert request_id([(b"host", b"x"), (b"x-request-id", given_id)]) == given_id.decode()


@pytest.mark.parametrize("given_id", [b"", b"x" * 129, b"two words", b"a\nb", b"\xff", b"a\n", b'x="y"'])
def test_what_is_no_id_is_replaced(given_id: bytes) -> None:
    assert MADE.fullmatch(request_id([(b"x-request-id", given_id)]))


def test_two_ids_are_none() -> None:
    assert MADE.fullmatch(request_id([(b"x-request-id", b"a"), (b"x-request-id", b"b")]))
    assert request_id([]) != request_id([])


@given(st.binary(max_size=200))
def test_no_header_can_put_anything_else_into_a_log_line(value: bytes) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", request_id([(b"x-request-id", value)]))


def test_a_request_without_an_answer_has_the_status_of_a_client_that_left() -> None:
    facts = RequestRecord(id="a", method="GET", endpoint="/x").facts()
    assert facts["status"] == 499
    assert set(facts) == {"id", "method", "endpoint", "status", "duration_ms"}

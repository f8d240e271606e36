import json

import pytest

from mach_store.errors import BankSizeError, TraceFormatError
from mach_store.trace.bank_sizes import pool_slots
from mach_store.trace.bank_tally import DECODE, PREFILL
from mach_store.trace.trace_replay import REPLAYED, replay_trace


def sizes(*wanted):
    return lambda header: [pool_slots(header, size) for size in wanted]


def test_a_trace_is_replayed_through_every_policy_and_size(small_trace) -> None:
    seen = []
    result = replay_trace(str(small_trace), REPLAYED, sizes(6, 12, 1.0), seen.append)
    assert [(bank.policy, bank.slots) for bank in result.banks] == [
        (policy, slots) for policy in REPLAYED for slots in ((6,), (12,), (24,))
    ]
    assert (result.answers, result.prefill_tokens, result.decode_tokens) == (2, 5, 4)
    assert result.loss == ""
    needed = sum(len(step.experts) for step in seen)
    for bank in result.banks:
        assert sum(bank.tally.total) == needed
        phases = [bank.tally.phase(phase) for phase in (PREFILL, DECODE)]
        assert tuple(map(sum, zip(*phases, strict=True))) == bank.tally.total
    document = json.loads(json.dumps(result.as_dict()))
    assert document["complete"] is True
    first, whole = document["banks"][0], document["banks"][2]
    assert (first["slots"], first["part"], first["bank_bytes"]) == (6, 0.25, 6 * 4608)
    assert first["bytes_read"] == first["misses"] * 4096
    assert first["decode_bytes_per_token"] == first["decode"]["misses"] * 4096 / 4
    assert list(first["layers"]) == ["1", "2", "5"]
    assert (whole["misses"], whole["hit_rate"], whole["evictions"]) == (0, 1.0, 0)
    assert document["banks"][-1]["policy"] == "belady"
    assert document["banks"][-1]["evictions"] is None


def test_a_trace_that_was_broken_off_is_replayed_as_far_as_it_goes(small_trace) -> None:
    whole = replay_trace(str(small_trace), ["lru"], sizes(6))
    small_trace.write_bytes(small_trace.read_bytes()[:-1])
    result = replay_trace(str(small_trace), ["lru"], sizes(6))
    assert "cut off" in result.loss
    assert result.as_dict()["complete"] is False
    assert result.banks[0].tally.total == whole.banks[0].tally.total, "only the ending is lost"


def test_a_size_or_a_file_that_cannot_be_is_refused(small_trace, tmp_path) -> None:
    with pytest.raises(BankSizeError, match="pool 0 has 5 slots: one token needs 6"):
        replay_trace(str(small_trace), ["lru"], lambda header: [(5,)])
    with pytest.raises(TraceFormatError):
        replay_trace(str(tmp_path / "nothing"), ["lru"], sizes(6))

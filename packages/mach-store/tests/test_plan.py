import json
import os

import pytest

from mach.io.arch_adapter import MoeShape
from mach_store.errors import PlanError
from mach_store.prune import plan as plan_module
from mach_store.prune.plan import keep_all, read_plan

SHAPE = MoeShape(num_layers=4, num_experts=8, top_k=2, hidden_size=64, expert_width=64, moe_layers=(1, 2, 3))
KEEP = {"1": [0, 1, 2], "2": [7, 3, 5], "3": [4, 5, 6]}


@pytest.fixture
def write(tmp_path):
    """A function (lines: objects, text or bytes) → the plan's path."""

    def make(*lines: object) -> str:
        path = tmp_path / "plan.jsonl"
        raw = [
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line)).encode()
            for line in lines
        ]
        path.write_bytes(b"".join(line + b"\n" for line in raw))
        return str(path)

    return make


def candidate(name: str = "a", **layers: object) -> dict[str, object]:
    return {"candidate_id": name, "keep": KEEP | {key.removeprefix("l"): v for key, v in layers.items()}}


def test_a_plan_names_the_experts_that_stay_ascending(write) -> None:
    plan = read_plan(write(candidate()), None, SHAPE)
    assert plan.candidate_id == "a"
    assert plan.experts == {1: (0, 1, 2), 2: (3, 5, 7), 3: (4, 5, 6)}
    assert list(plan.experts) == [1, 2, 3]
    assert plan.num_experts == 3


def test_without_a_plan_every_expert_stays() -> None:
    plan = keep_all(SHAPE)
    assert plan.experts == dict.fromkeys((1, 2, 3), tuple(range(8)))
    assert plan.num_experts == 8


def test_of_several_candidates_one_is_chosen_by_its_id(write) -> None:
    path = write(candidate("a"), candidate("b", l1=[5, 6, 7]))
    assert read_plan(path, "b", SHAPE).experts[1] == (5, 6, 7)
    assert read_plan(path, "a", SHAPE).candidate_id == "a"
    with pytest.raises(PlanError, match="choose one with --candidate-id: 'a', 'b'"):
        read_plan(path, None, SHAPE)
    with pytest.raises(PlanError, match="has no candidate 'c', only 'a', 'b'"):
        read_plan(path, "c", SHAPE)


def test_a_file_without_a_last_newline_is_whole(write, tmp_path) -> None:
    path = write(candidate())
    (tmp_path / "plan.jsonl").write_bytes((tmp_path / "plan.jsonl").read_bytes()[:-1])
    assert read_plan(path, "a", SHAPE).num_experts == 3


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"l1": [0]}, "layer 1 keeps 1 experts, fewer than the 2 that each token is routed to"),
        ({"l1": []}, "layer 1 keeps 0 experts"),
        ({"l1": [0, 1, 8]}, "layer 1 names expert 8; there are 0 to 7"),
        ({"l1": [0, 1, -1]}, "layer 1 names expert -1"),
        ({"l1": [0, 1, 10**30]}, "layer 1 names expert far too large a number"),
        ({"l1": [0, 1, 1]}, "layer 1 names expert 1 twice"),
        ({"l1": [0, 1, 2.0]}, "layer 1 is not a list of expert numbers"),
        ({"l1": [0, 1, True]}, "layer 1 is not a list of expert numbers"),
        ({"l1": {"0": 1}}, "layer 1 is not a list of expert numbers"),
        ({"l1": [0, 1]}, "layer 1 keeps 2 experts and layer 3 3: .* equally many in each"),
        ({"l0": [0, 1, 2]}, r"layer '0' is no MoE layer of this checkpoint \(1 to 3\)"),
        ({"l01": [0, 1, 2]}, "layer '01' is no MoE layer"),
        ({"l-1": [0, 1, 2]}, "layer '-1' is no MoE layer"),
        ({"l٣": [0, 1, 2]}, "layer '٣' is no MoE layer"),
        ({"l9999999": [0, 1, 2]}, "layer '9999999' is no MoE layer"),
    ],
)
def test_a_candidate_that_does_not_fit_the_checkpoint_is_refused(write, layers, message) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(write(candidate("other"), candidate("a", **layers)), "a", SHAPE)
    assert caught.value.line == 2
    assert str(caught.value).startswith(f"{caught.value.path}:2: ")


def test_a_layer_that_is_not_there_is_named(write) -> None:
    keep = {key: value for key, value in KEEP.items() if key != "2"}
    with pytest.raises(PlanError, match="layer 2 is missing"):
        read_plan(write({"candidate_id": "a", "keep": keep}), None, SHAPE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "the line is empty: take it out"),
        (b" \r", "the line is empty: take it out"),
        (b"[]", "not a JSON object; each line holds one candidate"),
        (b"{", "not a JSON object"),
        (b"\xff{}", "not a JSON object"),
        (b"[" * 100_000, "nested too deeply|not a JSON object"),
        ({"keep": KEEP}, "candidate_id must be a string"),
        ({"candidate_id": 3, "keep": KEEP}, "candidate_id must be a string"),
        ({"candidate_id": "", "keep": KEEP}, "candidate_id must be a string of 1 to 200"),
        ({"candidate_id": "x" * 201, "keep": KEEP}, "candidate_id must be a string of 1 to 200"),
        ({"candidate_id": "b"}, "keep must be an object"),
        ({"candidate_id": "b", "keep": [1]}, "keep must be an object"),
        ({"candidate_id": "b", "keep": KEEP, "note": 1}, "unknown field 'note'"),
        ('{"candidate_id": "b", "keep": {"1": [0, 1], "1": [0, 1]}}', "a key is given twice"),
        (candidate("a"), "candidate_id 'a' is also on line 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_malformed_line_is_refused_also_when_another_is_asked_for(write, line, message) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(write(candidate("a"), line), "a", SHAPE)
    assert caught.value.line == 2


def test_lines_and_their_number_are_bounded(write, monkeypatch) -> None:
    monkeypatch.setattr(plan_module, "MAX_LINE_BYTES", 1000)
    with pytest.raises(PlanError, match="longer than 1000 bytes"):
        read_plan(write(candidate("a", l1=list(range(400)))), "a", SHAPE)
    monkeypatch.setattr(plan_module, "MAX_LINES", 2)
    with pytest.raises(PlanError, match="more than 2 lines"):
        read_plan(write(*(candidate(name) for name in "abc")), "a", SHAPE)


def test_what_is_no_plan_file_is_refused(tmp_path, write) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        read_plan(tmp_path / "nothing", None, SHAPE)
    with pytest.raises(PlanError, match="not a regular file"):
        read_plan(tmp_path, None, SHAPE)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(PlanError, match="not a regular file"):
        read_plan(tmp_path / "pipe", None, SHAPE)
    with pytest.raises(PlanError, match="holds no candidate"):
        read_plan(write(), None, SHAPE)

"""The native predictor of the next layer's experts, call by call beside its Python twin."""

import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mach_store.expert_predictor import MOST_BYTES, ExpertPredictor

NATIVE = Path(__file__).resolve().parents[1] / "native"
COMPILER = os.environ.get("CXX", "c++")
pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler ({COMPILER})")


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Callable[[list[str]], list[str]]:
    """A function (lines for native/tests/predictor_calls.cpp) → its answers; memory errors end it."""
    program = tmp_path_factory.mktemp("predictor") / "predictor_calls"
    source = NATIVE / "src" / "expert_stream"
    subprocess.run(
        [COMPILER, "-std=c++20", "-O2", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        + ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", f"-I{source}"]
        + [str(source / "predictor.cpp"), str(NATIVE / "tests" / "predictor_calls.cpp"), "-o", str(program)],
        check=True,
    )

    def answers(lines: list[str]) -> list[str]:
        text = "\n".join(lines) + "\n"
        done = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return answers


def told(numbers) -> str:
    return " ".join(map(str, numbers))


class Both:
    """Calls for the native predictor, and what the twin answered."""

    def __init__(self, layers: int, experts: int) -> None:
        self.twin = ExpertPredictor(layers, experts)
        self.calls, self.expected = [f"{layers} {experts} {MOST_BYTES}"], []

    def observe(self, layer, ids) -> None:
        self.twin.observe(layer, ids)
        self.calls.append(f"o {layer} {told(ids)}")

    def ask(self, layer, ids, ranked, present, most) -> None:
        self.expected.append(told(self.twin.guess(layer, ids, ranked, present, most)))
        self.calls.append(f"g {layer} {most} {told(ids)} | {told(ranked)} | {told(sorted(present))}")

    def forget(self) -> None:
        self.twin.forget_pass()
        self.calls.append("f")

    def score(self, layer) -> None:
        score = self.twin.score(layer)
        numbers = (score.judged, score.judged_used, score.given, score.given_used)
        self.expected.append(told([*numbers, int(self.twin.is_open(layer))]))
        self.calls.append(f"s {layer}")


@pytest.mark.parametrize(
    ("layers", "experts", "k", "order"), [(1, 5, 2, 0.9), (3, 40, 4, 0.8), (4, 200, 8, 0.2), (2, 80, 70, 0.5)]
)
def test_native_and_twin_give_the_same_through_a_random_history(native, layers, experts, k, order) -> None:
    random_ = random.Random(layers * experts)
    both = Both(layers, experts)
    ids = random_.sample(range(experts), k)
    for step in range(900 if k < 20 else 60):
        layer = step % layers
        # With the chance `order` an expert is followed by a certain one: something to learn.
        ids = [
            (7 * expert + 3) % experts if random_.random() < order else random_.randrange(experts)
            for expert in ids
        ]
        both.observe(layer, ids)
        if random_.random() < 0.02:
            both.forget()
        if random_.random() < 0.02:
            both.observe(random_.randrange(layers), ids)
        present = set(random_.sample(range(experts), random_.randrange(experts)))
        ranked = list(dict.fromkeys([(7 * expert + 3) % experts for expert in ids] + [0, 1, 2, 3]))
        kinds = [(ids, ()), ((), ranked), (ids, ranked)][step // 5 % 3]
        both.ask(layer, *kinds, present, random_.randrange(6))
        both.score(random_.randrange(layers))
    assert native(both.calls) == both.expected
    given = sum(both.twin.score(layer).given for layer in range(layers))
    assert given > 0 or order < 0.8


def test_a_pass_of_too_many_experts_is_passed_over_alike(native) -> None:
    both = Both(2, 100)
    for step in range(40):
        both.observe(step % 2, range(65 if step % 7 == 3 else 64))
        both.ask(step % 2, range(65 if step % 5 == 3 else 64), (), set(), 4)
        both.score(step % 2)
    assert native(both.calls) == both.expected


def test_shapes_without_experts_and_beyond_the_bound_are_refused(native) -> None:
    assert native(["0 8 1000"]) == ["error: a predictor needs a layer and an expert"]
    assert native(["8 0 1000"]) == ["error: a predictor needs a layer and an expert"]
    for shape in ("60 1024", "65536 65536", "4294967295 4294967295"):
        (line,) = native([f"{shape} {MOST_BYTES}"])
        assert "takes more than 67108864 bytes" in line
    assert native([f"60 512 {MOST_BYTES}", "s 59"]) == ["0 0 0 0 1"]

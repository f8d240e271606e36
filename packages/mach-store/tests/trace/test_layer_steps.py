import numpy as np

from mach_store.trace.layer_steps import layer_steps
from mach_store.trace.trace_events import AnswerBegan, AnswerEnded, ModelPass


def test_a_pass_becomes_a_step_for_each_layer_it_came_to() -> None:
    decode = ModelPass(False, [np.array([[1, 4]], np.uint8), np.array([[0, 7]], np.uint8)])
    prompt = ModelPass(True, [np.array([[3, 5], [2, 5], [2, 6]], np.uint8)])
    steps = list(layer_steps([AnswerBegan(3), prompt, decode, AnswerEnded(True)]))
    assert [(s.at, s.tokens, s.prefill) for s in steps] == [(0, 3, True), (0, 1, False), (1, 1, False)]
    assert steps[0].experts == [2, 3, 5, 6]
    assert steps[0].hottest_first == [2, 5, 3, 6]
    assert steps[1].experts == steps[1].hottest_first == [1, 4]


def test_an_expert_that_a_token_is_routed_to_twice_is_needed_once() -> None:
    (step,) = layer_steps([ModelPass(False, [np.array([[3, 3]], np.uint8)])])
    assert step.experts == [3]

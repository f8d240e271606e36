import numpy as np

from mach_store.trace.layer_steps import LayerStep
from mach_store.trace.route_use import LONGEST, RouteUse


def test_uses_and_gaps_of_decode_passes_are_counted(make_header) -> None:
    use = RouteUse(make_header(layers=[0, 1]))
    for experts in ([0, 1], [1, 2], [0, 2]):
        use.step(LayerStep(0, 1, False, experts, experts))
    use.step(LayerStep(0, 9, True, [5], [5]))
    assert use.passes.tolist() == [3, 0]
    assert use.uses[0].tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    assert use.frequency[0, 0] == 2 / 3
    assert not use.frequency[1].any()
    assert use.gaps[:4].tolist() == [0, 2, 1, 0]
    np.testing.assert_allclose(use.reused_within[:3], [2 / 3, 1, 1])


def test_a_very_long_gap_counts_as_the_longest(make_header) -> None:
    use = RouteUse(make_header(layers=[0]))
    use.step(LayerStep(0, 1, False, [0], [0]))
    for _ in range(LONGEST + 3):
        use.step(LayerStep(0, 1, False, [1], [1]))
    use.step(LayerStep(0, 1, False, [0], [0]))
    assert use.gaps[LONGEST] == 1


def test_a_trace_without_decoding_has_no_uses(make_header) -> None:
    use = RouteUse(make_header())
    assert not use.frequency.any()
    assert not use.reused_within.any()

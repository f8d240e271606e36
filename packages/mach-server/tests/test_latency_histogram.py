from hypothesis import given
from hypothesis import strategies as st

from mach_server.latency_histogram import SECONDS, LatencyHistogram


def test_a_bound_belongs_to_its_own_bucket() -> None:
    histogram = LatencyHistogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(seconds)
    assert histogram.read() == ([("1.0", 2), ("2.0", 4), ("+Inf", 5)], 14.0)


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_buckets_never_fall_and_the_last_one_holds_all(durations: list[float]) -> None:
    histogram = LatencyHistogram()
    for seconds in durations:
        histogram.observe(seconds)
    buckets, total = histogram.read()
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == len(durations) and total == sum(durations)
    assert [sum(d <= bound for d in durations) for bound in SECONDS] == counts[:-1]

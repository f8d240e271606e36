from mach_store.counters import LayerCounters


def test_counts_add_up_and_give_the_hit_rate() -> None:
    total = LayerCounters(hits=3, misses=1, bytes_read=10)
    total.add(LayerCounters(hits=1, misses=3, evictions=2, transient_reads=1, bytes_read=5, read_seconds=0.5))
    assert total == LayerCounters(
        hits=4, misses=4, evictions=2, transient_reads=1, bytes_read=15, read_seconds=0.5
    )
    assert total.as_dict()["hit_rate"] == 0.5


def test_the_hit_rate_is_zero_before_the_first_use() -> None:
    assert LayerCounters().as_dict()["hit_rate"] == 0.0


def test_what_was_counted_since_is_the_difference() -> None:
    before = LayerCounters(hits=3, misses=1, wait_seconds=0.25)
    after = LayerCounters(hits=5, misses=4, bytes_read=7, wait_seconds=1.0)
    assert after.since(before) == LayerCounters(hits=2, misses=3, bytes_read=7, wait_seconds=0.75)

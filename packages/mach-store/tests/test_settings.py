import pytest

from mach_store.errors import SettingError
from mach_store.settings import StoreSettings


def test_an_empty_environment_gives_the_defaults() -> None:
    assert StoreSettings.from_environment({}) == StoreSettings()


def test_every_variable_is_read() -> None:
    environment = {
        "LME_USE_GATHER_DISPATCH": "0",
        "LME_IN_GRAPH_DISPATCH": "0",
        "LME_ASYNC_PREFETCH": "0",
        "LME_FALLBACK_POLICY": "diagnostic-python",
        "LME_READ_THREADS": "9",
        "LME_DIRECT_IO": "1",
        "LME_VERIFY_READS": "0",
        "LME_TRANSIENT_MIN_TOKENS": "5",
        "LME_SCRATCH_EXPERTS": "3",
        "LME_BANK_EVICTION_POLICY": "lfu",
    }
    assert StoreSettings.from_environment(environment) == StoreSettings(
        use_gather_dispatch=False,
        in_graph_dispatch=False,
        async_prefetch=False,
        fallback_policy="diagnostic-python",
        read_threads=9,
        direct_io=True,
        verify_reads=False,
        transient_min_tokens=5,
        scratch_experts=3,
        eviction_policy="lfu",
        scratch_told=True,
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LME_USE_GATHER_DISPATCH", "yes"),
        ("LME_USE_GATHER_DISPATCH", ""),
        ("LME_IN_GRAPH_DISPATCH", "on"),
        ("LME_ASYNC_PREFETCH", "on"),
        ("LME_DIRECT_IO", "true"),
        ("LME_VERIFY_READS", "2"),
        ("LME_FALLBACK_POLICY", "python"),
        ("LME_READ_THREADS", "0"),
        ("LME_READ_THREADS", "65"),
        ("LME_READ_THREADS", "four"),
        ("LME_READ_THREADS", "-1"),
        ("LME_READ_THREADS", "²"),
        ("LME_READ_THREADS", "9" * 5000),
        ("LME_TRANSIENT_MIN_TOKENS", "1"),
        ("LME_TRANSIENT_MIN_TOKENS", "2.5"),
        ("LME_SCRATCH_EXPERTS", "0"),
        ("LME_SCRATCH_EXPERTS", "4097"),
        ("LME_BANK_EVICTION_POLICY", "mru"),
        ("LME_BANK_EVICTION_POLICY", ""),
        ("LME_DECODE_RESIDENCY", ""),
        ("LME_DECODE_RESIDENCY", "on"),
        ("LME_DECODE_RESIDENCY", "off,off"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_variable(variable, value) -> None:
    with pytest.raises(SettingError, match=variable) as caught:
        StoreSettings.from_environment({variable: value})
    assert caught.value.variable == variable
    assert "must be" in str(caught.value)


def test_direct_reads_and_reads_ahead_are_asked_for_refused_or_left_to_be_chosen() -> None:
    for value, meaning in (("0", False), ("1", True), ("auto", None)):
        assert StoreSettings.from_environment({"LME_DIRECT_IO": value}).direct_io is meaning
        assert StoreSettings.from_environment({"LME_ASYNC_PREFETCH": value}).async_prefetch is meaning
    assert StoreSettings.from_environment({}).direct_io is None
    assert StoreSettings.from_environment({}).async_prefetch is None
    with pytest.raises(SettingError, match="LME_DIRECT_IO='yes': must be 0, 1 or auto"):
        StoreSettings.from_environment({"LME_DIRECT_IO": "yes"})


def test_a_bad_policy_is_told_the_choices() -> None:
    with pytest.raises(SettingError, match="must be lru or lfu or lookahead"):
        StoreSettings.from_environment({"LME_BANK_EVICTION_POLICY": "LRU"})


def test_decode_residency_may_be_off() -> None:
    assert StoreSettings.from_environment({"LME_DECODE_RESIDENCY": "off"}).decode_residency == frozenset()


def test_decode_residency_is_words_with_commas_between_them() -> None:
    settings = StoreSettings.from_environment({"LME_DECODE_RESIDENCY": "reclaim"})
    assert settings.decode_residency == {"reclaim"}

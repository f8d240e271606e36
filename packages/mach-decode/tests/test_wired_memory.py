import mlx.core as mx
import pytest

from mach_decode import wired_memory
from mach_decode.errors import ResidencyError
from mach_decode.wired_memory import wire


@pytest.fixture
def metal(monkeypatch) -> list[int]:
    """A machine with Metal that recommends 20 GB, as far as `wire` sees; the limits that were set."""
    limits: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 20_000_000_000})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    return limits


@pytest.mark.skipif(mx.metal.is_available(), reason="there is Metal here")
def test_without_metal_an_explicit_limit_is_an_error_and_none_is_nothing() -> None:
    assert wire(None) is None
    with pytest.raises(ResidencyError, match="there is no Metal here"):
        wire(9.0)


def test_on_metal_the_default_is_nine_or_what_metal_recommends(metal, monkeypatch) -> None:
    assert wire(None) == 9_000_000_000
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 5_000_000_000})
    assert wire(None) == 5_000_000_000
    assert metal == [9_000_000_000, 5_000_000_000]


def test_on_metal_what_is_asked_for_is_set_or_refused(metal) -> None:
    assert wire(12.5) == 12_500_000_000
    with pytest.raises(ResidencyError, match="Metal recommends at most 20.00 here"):
        wire(21.0)
    assert metal == [12_500_000_000]
    assert wired_memory.DEFAULT_WIRED_GB == 9.0

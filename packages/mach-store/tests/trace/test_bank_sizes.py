import msgspec
import pytest

from mach_store.errors import BankSizeError
from mach_store.trace.bank_sizes import bank_bytes, default_sizes, is_whole, pool_slots


@pytest.fixture
def header(make_header):
    """3 layers of 8 experts, top 2."""
    return make_header()


@pytest.mark.parametrize(
    ("size", "slots"), [(0.25, 6), (0.5, 12), (1.0, 24), (6, 6), (13, 13), (24, 24), (0.3, 7)]
)
def test_a_size_is_a_part_of_the_experts_or_slots(header, size, slots) -> None:
    assert pool_slots(header, size) == (slots,)
    assert bank_bytes(header, (slots,)) == 4608 * slots


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (5, "a bank of 5 slots does not hold one token's 6 experts: give at least 6 slots, or 0.25 of"),
        (0.2, "a bank of 0.2 of the experts does not hold one token's 6"),
        (25, "a bank of 25 slots is larger than all 24 experts"),
        (1.01, "a bank of 1.01 of the experts is larger"),
        (float("nan"), "larger than all"),
    ],
)
def test_a_size_that_no_bank_has_is_refused(header, size, message) -> None:
    with pytest.raises(BankSizeError, match=message):
        pool_slots(header, size)


def test_pools_share_a_size_as_the_engines_budget_does(make_header) -> None:
    header = make_header(layers=[0, 1, 2], pools=[0, 1, 1], slot_bytes=[3000, 1000, 1000])
    assert pool_slots(header, 1.0) == (8, 16)
    assert pool_slots(header, 0.25) == (2, 4)
    half = pool_slots(header, 0.5)
    assert bank_bytes(header, half) <= 0.5 * bank_bytes(header, (8, 16))
    assert half == (4, 8)
    assert is_whole(header, (8, 16))
    assert not is_whole(header, (8, 15))


def test_a_curve_goes_from_the_least_bank_to_the_whole_and_through_the_recorded_one(make_header) -> None:
    header = make_header(experts=64, run=msgspec.structs.replace(make_header().run, bank_slots=[101]))
    sizes = default_sizes(header)
    assert sizes[0] == (6,)
    assert sizes[-1] == (192,)
    assert (101,) in sizes
    assert sizes == sorted(set(sizes))

from mach.commands.text_table import printable, readable_size, text_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(("a", "b"), [("xxx", "y"), ("", "zz")]) == "a    b\n---  --\nxxx  y\n     zz"


def test_control_characters_are_shown_and_not_sent() -> None:
    assert printable("a\x1b[2J\nb\ud800") == "a\\x1b[2J\\x0ab\\xd800"


def test_sizes_are_in_powers_of_ten() -> None:
    assert [readable_size(n) for n in (5, 200_000, 10**8, 14_200_000_000)] == [
        "0.0kB",
        "0.2MB",
        "0.1GB",
        "14.2GB",
    ]

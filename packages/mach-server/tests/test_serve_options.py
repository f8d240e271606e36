import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach_server.errors import SettingError
from mach_server.limits import Limits
from mach_server.serve_options import parse

USUAL = ["mach-pico", "--streaming"]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MACH_API_KEY", raising=False)


def test_without_flags_the_limits_are_the_usual_ones_and_everything_is_local() -> None:
    options = parse(USUAL)
    assert options.limits == Limits()
    assert (options.host, options.port, options.uds) == ("127.0.0.1", 8080, None)
    assert options.api_key is None and options.cors_origins == () and options.log_format == "text"


def test_every_limit_has_its_flag() -> None:
    options = parse([
        *USUAL, "--max-body-bytes", "100000000", "--max-prompt-tokens", "5", "--max-queue", "0",
        "--request-timeout", "2.5", "--grace-seconds", "0", "--log-format", "json",
        "--cors-origin", "https://A.example", "--cors-origin", "app://x", "--allowed-host", "Box",
    ])  # fmt: skip
    limits = options.limits
    assert (limits.body_bytes, limits.prompt_tokens, limits.queue_length) == (100_000_000, 5, 0)
    assert limits.discarded_bytes >= limits.body_bytes
    assert (limits.request_seconds, limits.drain_seconds) == (2.5, 0)
    assert options.cors_origins == ("https://a.example", "app://x")
    assert (options.allowed_hosts, options.log_format) == ({"box"}, "json")


@pytest.mark.parametrize(
    ("flag", "values"),
    [
        ("--port", ["-1", "70000", "", "x", "٣"]),
        ("--max-body-bytes", ["0", "-1", "1e6", "9" * 30]),
        ("--max-prompt-tokens", ["0", "1.5"]),
        ("--max-queue", ["-1", "all"]),
        ("--request-timeout", ["0", "-1", "nan", "inf", "1e9", "soon"]),
        ("--grace-seconds", ["-0.1", "nan", "inf", ""]),
        ("--log-format", ["xml", ""]),
        ("--record-trace", ["", "a\0b"]),
        ("--record-trace-mb", ["0", "-1", "nan", "much", "1e9"]),
        ("--api-key", ["", "two words", "ü"]),
        ("--cors-origin", ["", "example.org", "https://a/"]),
        ("--allowed-host", ["", "http://a", "a:1"]),
        ("--uds", ["", "a\0b"]),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_flag(flag: str, values: list[str], capsys) -> None:
    for value in values:
        with pytest.raises(SystemExit) as end:
            parse([*USUAL, f"{flag}={value}"])
        assert end.value.code == 2
        assert f"argument {flag}: " in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--host", "127.0.0.1"], ["--port", "8080"], ["--port", "0"]])
def test_a_unix_socket_excludes_an_address(extra: list[str], capsys) -> None:
    with pytest.raises(SystemExit):
        parse([*USUAL, "--uds", "s", *extra])
    assert "--uds listens on no TCP address" in capsys.readouterr().err


def test_the_flag_s_key_goes_before_the_variable_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACH_API_KEY", "variable")
    assert parse(USUAL).api_key == "variable"
    assert parse([*USUAL, "--api-key", "flag"]).api_key == "flag"
    monkeypatch.setenv("MACH_API_KEY", "")
    with pytest.raises(SettingError, match="MACH_API_KEY"):
        parse(USUAL)


def test_names_are_checked_only_where_nothing_else_protects() -> None:
    options = parse([*USUAL, "--allowed-host", "box.lan", "--host", "Localhost"])
    assert options.access(loopback=True, is_unix=False).trusted_hosts == {"box.lan", "localhost"}
    assert options.access(loopback=False, is_unix=False).trusted_hosts is None
    assert options.access(loopback=True, is_unix=True).trusted_hosts is None
    locked = parse([*USUAL, "--api-key", "k"])
    assert locked.access(loopback=True, is_unix=False).trusted_hosts is None


@given(
    st.sampled_from(["--port", "--max-queue", "--grace-seconds", "--request-timeout"]), st.text(max_size=8)
)
def test_no_value_of_a_number_is_a_crash(flag: str, value: str) -> None:
    try:
        parse([*USUAL, f"{flag}={value}"])
    except SystemExit as end:
        assert end.code == 2


def test_a_recording_has_a_file_and_a_limit() -> None:
    assert parse(USUAL).record_trace is None
    options = parse([*USUAL, "--record-trace", "x.trace"])
    assert (options.record_trace, options.record_trace_bytes) == ("x.trace", 256_000_000)
    assert parse([*USUAL, "--record-trace", "x", "--record-trace-mb", "1.5"]).record_trace_bytes == 1_500_000


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([*USUAL, "--record-trace-mb", "5"], "give --record-trace too"),
        (["mach-pico", "--backend", "openai", "--record-trace", "x"], "nobody sees the routes"),
    ],
)
def test_a_recording_of_nothing_is_refused(arguments, why, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert why in capsys.readouterr().err

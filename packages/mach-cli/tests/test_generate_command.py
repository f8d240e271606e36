import re
import shutil

import pytest

from mach.io.checkpoint_path import resolve_checkpoint
from mach_cli.generate_command import main
from mach_decode import loader
from mach_decode.engine import Engine, EngineConfig
from mach_decode.request import GenerationRequest
from mach_decode.sampling import SamplingParams
from mach_store.synthetic_dense import dense_config, write_dense_checkpoint

FIGURES = re.compile(
    r"prompt \d+ tokens, [\d.]+ tok/s; decode (?P<tokens>\d+) tokens, [\d.]+ tok/s; "
    r"first token \d+ ms; experts (?P<residency>\w+), hit rate (?P<rate>[\d.]+), "
    r"(?P<hits>\d+) hits, (?P<misses>\d+) misses, (?P<read>[\d.]+) MB read, "
    r"(?P<waited>\d+) ms waiting for reads, (?P<computed>\d+) ms computing; "
    r"peak memory \d+ MB; finish (?P<finish>\w+)\n"
)
PROMPT = "def reverse(s):\n    "


@pytest.fixture
def generate(capsys):
    """A function (arguments) → exit status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(generate):
    """A function (message, arguments): one line on stderr, status 2, nothing on stdout."""

    def check(message: str, *arguments: object) -> None:
        status, out, err = generate(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("mach-generate: ")
        assert err.count("\n") == 1
        assert re.search(message, err), err

    return check


def library_text(directory, **fields) -> str:
    engine = Engine.load(EngineConfig(checkpoint=str(directory)))
    request = GenerationRequest(prompt=engine.encode(PROMPT), **fields)
    text = "".join(event.text for event in engine.generate(request))
    engine.close()
    return text


def test_the_answer_goes_to_stdout_and_its_figures_in_one_line_to_stderr(generate, sliced) -> None:
    status, out, err = generate(sliced, "--prompt", PROMPT, "--max-tokens", 8)
    assert status == 0
    assert out == library_text(sliced, max_tokens=8) + "\n"
    figures = FIGURES.fullmatch(err)
    assert figures
    assert (figures["tokens"], figures["finish"], figures["residency"]) == ("8", "length", "streaming")


def test_the_same_seed_gives_the_text_that_the_library_gives(generate, sliced) -> None:
    options = ["--temperature", 0.9, "--top-p", 0.95, "--top-k", 50, "--min-p", 0.01]
    options += ["--repetition-penalty", 1.1, "--max-tokens", 10]
    texts = [generate(sliced, "--prompt", PROMPT, *options, "--seed", seed)[1] for seed in (7, 7, 8)]
    sampling = SamplingParams(
        temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=7
    )
    assert texts[0] == texts[1] == library_text(sliced, max_tokens=10, sampling=sampling) + "\n"
    assert texts[2] != texts[0]


def test_a_small_bank_changes_the_figures_and_not_the_text(generate, sliced) -> None:
    _, whole, _ = generate(sliced, "--prompt", PROMPT, "--max-tokens", 8)
    status, small, err = generate(
        sliced, "--prompt", PROMPT, "--max-tokens", 8, "--streaming", "--expert-cache-gb", "0.00007"
    )
    assert status == 0
    assert small == whole
    figures = FIGURES.fullmatch(err)
    assert float(figures["rate"]) < 1.0
    assert float(figures["read"]) > 0.0


def test_both_residencies_of_a_stacked_checkpoint_give_the_same_text(generate, sliced, stacked) -> None:
    _, expected, _ = generate(sliced, "--prompt", PROMPT, "--max-tokens", 8)
    status, out, err = generate(stacked, "--prompt", PROMPT, "--max-tokens", 8, "--no-streaming")
    assert (status, out) == (0, expected)
    assert FIGURES.fullmatch(err)["residency"] == "stacked"
    status, out, err = generate(stacked, "--prompt", PROMPT, "--max-tokens", 8, "--streaming")
    assert (status, out) == (0, expected)
    assert "lazy per-expert slices" in err.splitlines()[0]


def test_without_a_wish_a_stacked_checkpoint_is_resident_unless_a_budget_is_given(generate, stacked) -> None:
    options = (stacked, "--prompt", PROMPT, "--max-tokens", 2)
    assert "experts stacked" in generate(*options)[2]
    assert "experts streaming" in generate(*options, "--expert-cache-gb", 1)[2]


def test_a_stop_string_ends_the_text(generate, sliced) -> None:
    _, text, _ = generate(sliced, "--prompt", PROMPT, "--max-tokens", 8)
    stop = text[4:7]
    status, out, err = generate(
        sliced, "--prompt", PROMPT, "--max-tokens", 8, "--stop", "never there", "--stop", stop
    )
    assert (status, out) == (0, text[: text.index(stop)] + "\n")
    assert FIGURES.fullmatch(err)["finish"] == "stop"


def test_chat_applies_the_template(generate, sliced) -> None:
    plain = generate(sliced, "--prompt", "hello", "--max-tokens", 6)
    chat = generate(sliced, "--prompt", "hello", "--max-tokens", 6, "--chat")
    assert chat[0] == 0
    assert chat[1] != plain[1]


def test_the_installed_checkpoint_answers_by_its_name(generate) -> None:
    status, out, err = generate("mach-pico", "--prompt", PROMPT, "--max-tokens", 6)
    assert status == 0
    assert out.strip()
    assert FIGURES.fullmatch(err)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("temperature must be from 0 to 2", ["--temperature", "3"]),
        ("temperature", ["--temperature", "nan"]),
        ("top_p must be above 0", ["--top-p", "0"]),
        ("top_k must not be negative", ["--top-k", "-1"]),
        ("min_p", ["--min-p", "2"]),
        ("repetition_penalty", ["--repetition-penalty", "0"]),
        ("max_tokens must be at least 1", ["--max-tokens", "0"]),
        ("stop holds an empty string", ["--stop", ""]),
        ("--no-streaming: needs the axis-0 stacked layout.*--streaming works", ["--no-streaming"]),
        ("one token needs 2 experts.*raise --expert-cache-gb", ["--expert-cache-gb", "0.000001"]),
        ("--expert-cache-gb -1.0: must be a positive", ["--expert-cache-gb", "-1"]),
        ("--expert-cache-gb nan", ["--expert-cache-gb", "nan"]),
        ("--expert-cache-gb 1e[+]30", ["--expert-cache-gb", "1e30"]),
    ],
)
def test_a_bad_option_is_one_line_that_says_what_to_do(refused, sliced, message, arguments) -> None:
    refused(message, sliced, "--prompt", PROMPT, *arguments)


def test_a_prompt_that_cannot_be_answered_is_one_line(refused, sliced) -> None:
    refused("prompt is empty", sliced, "--prompt", "")
    refused("the prompt has .* tokens, but the context holds 128", sliced, "--prompt", "word " * 500)
    refused("half of a surrogate pair", sliced, "--prompt", "\udcff")


def test_a_checkpoint_that_is_none_is_one_line(refused, sliced, tmp_path) -> None:
    refused("neither a directory here nor the name of an installed", "no-such-model", "--prompt", "x")
    refused("the directory is empty", tmp_path, "--prompt", "x")
    directory = tmp_path / "copy"
    shutil.copytree(sliced, directory)
    (directory / "config.json").write_text("{}")
    refused("model_type is missing", directory, "--prompt", "x")
    (directory / "config.json").write_text("{")
    refused("not valid JSON", directory, "--prompt", "x")
    shutil.copyfile(sliced / "config.json", directory / "config.json")
    (directory / "expert_sidecar" / "layout.json").write_text("[]")
    refused("not a JSON object", directory, "--prompt", "x")


def test_a_bad_variable_is_one_line_that_names_it(refused, sliced, monkeypatch) -> None:
    monkeypatch.setenv("LME_READ_THREADS", "many")
    refused("LME_READ_THREADS='many': must be an integer from 1 to 64", sliced, "--prompt", "x")


def test_a_corrupt_expert_gives_no_text_of_it_and_one_line(generate, sliced, tmp_path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(sliced, directory)
    for path in (directory / "expert_sidecar").glob("layer_*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    status, out, err = generate(directory, "--prompt", PROMPT, "--expert-cache-gb", "0.00007")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"mach-generate: .*layer_00.bin: layer 0, expert \d: .*export .*\n", err)


def test_usage_errors_name_the_option(capsys, sliced) -> None:
    for arguments, message in (
        ([str(sliced)], "--prompt"),
        ([str(sliced), "--prompt", "x", "--top-k", "many"], "--top-k"),
        ([str(sliced), "--prompt", "x", "--streaming", "--no-streaming"], "--no-streaming"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints") / "dense"
    pico = resolve_checkpoint("mach-pico")
    write_dense_checkpoint(directory, dense_config(), tokenizer_from=pico)
    return directory


def test_the_openai_backend_runs_a_dense_model_and_has_no_figures_of_experts(generate, dense) -> None:
    status, out, err = generate(dense, "--backend", "openai", "--prompt", PROMPT, "--max-tokens", 4)
    assert (status, bool(out.strip())) == (0, True)
    assert re.fullmatch(r"prompt .*; experts unswapped; peak memory \d+ MB; finish (length|stop)\n", err)


def test_without_the_flag_a_dense_model_is_refused_and_the_flag_named(refused, dense) -> None:
    refused("model_type 'qwen3' is not supported.*--backend openai", dense, "--prompt", "x")


def test_the_openai_backend_takes_no_residency_and_nothing_sliced(refused, capsys, dense, sliced) -> None:
    for options in (["--streaming"], ["--no-streaming"], ["--expert-cache-gb", "1"]):
        with pytest.raises(SystemExit) as caught:
            main([str(dense), "--prompt", "x", "--backend", "openai", *options])
        assert caught.value.code == 2
        assert "leave out --streaming" in capsys.readouterr().err
    refused("experts are in a sidecar", sliced, "--backend", "openai", "--prompt", "x")


def test_bf16_streaming_comes_with_its_variable(generate, refused, stacked, sliced, monkeypatch) -> None:
    options = ("--prompt", PROMPT, "--max-tokens", 4)
    monkeypatch.setenv("LME_BF16_STACKED_STREAMING", "1")
    for flags in ((), ("--streaming",)):
        status, out, err = generate(stacked, *options, *flags)
        assert (status, bool(out.strip())) == (0, True)
        assert FIGURES.fullmatch(err)["residency"] == "bf16_streaming"
    refused("goes with --streaming, not --no-streaming", stacked, *options, "--no-streaming")
    refused("needs the axis-0 stacked layout, found sliced", sliced, *options)


def test_a_checkpoint_is_inspected_once(generate, sliced, monkeypatch) -> None:
    seen = []
    inspect = loader.inspect_checkpoint
    monkeypatch.setattr(loader, "inspect_checkpoint", lambda path: seen.append(path) or inspect(path))
    assert generate(sliced, "--prompt", PROMPT, "--max-tokens", 1)[0] == 0
    assert len(seen) == 1

"""The status page in a real browser: Chromium, headless, where it is installed."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from chromium_page import ChromiumPage, find_chromium
from faulty_serving import eventually

from mach.io.checkpoint_path import resolve_checkpoint

CHROMIUM = find_chromium()

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)

END_TOKENS = json.loads((resolve_checkpoint("mach-pico") / "config.json").read_text())["eos_token_id"]
TEXT = "document.querySelector('.turn.assistant:last-child pre:last-of-type')?.textContent ?? ''"
DRAWN = """((id) => {
    const picture = document.getElementById(id);
    const pixels = picture.getContext('2d').getImageData(0, 0, picture.width, picture.height).data;
    const colours = new Set();
    for (let at = 0; at < pixels.length; at += 4) colours.add(pixels.slice(at, at + 4).join());
    return colours.size;
})"""


@pytest.fixture
def page(served_pico: str) -> Iterator[ChromiumPage]:
    assert CHROMIUM is not None
    with ChromiumPage(CHROMIUM) as page:
        page.open(served_pico)
        page.wait_for("document.getElementById('state').textContent === 'ready'")
        yield page


def test_the_page_shows_the_model_and_draws_its_experts(page: ChromiumPage, served_pico: str) -> None:
    assert page.evaluate("document.getElementById('model').textContent") == "mach-pico"
    assert page.evaluate("document.title").startswith("mach-pico")
    page.wait_for("document.getElementById('map-summary').textContent.includes('experts are in memory')")
    report = httpx.get(f"{served_pico}/v1/cache/experts").json()
    shown = page.evaluate("document.getElementById('map-summary').textContent")
    everything = sum(layer["experts"] for layer in report["layers"])
    assert f"of {everything} experts are in memory" in shown
    assert page.wait_for(f"{DRAWN}('map')") >= 2, "cells and the gaps between them"
    assert page.complaints == []
    assert {url.split("/")[2] for url in page.requests if not url.startswith("data:")} == {
        served_pico.removeprefix("http://")
    }


def test_a_chat_streams_into_the_page(page: ChromiumPage) -> None:
    page.evaluate(
        "globalThis.growth = []; new MutationObserver(() => growth.push(log.textContent.length))"
        ".observe(globalThis.log = document.getElementById('log'),"
        " {childList: true, subtree: true, characterData: true})"
    )
    page.evaluate("document.getElementById('max').value = 120")
    page.type_text("#say", "def reverse(s):")
    page.press("Enter")
    # Not that it has begun: a fast answer is over before anybody looks.
    page.wait_for(
        "document.getElementById('stop').disabled &&"
        " document.querySelector('.turn.assistant')?.textContent.length > 40"
    )
    assert page.evaluate("document.querySelectorAll('.turn').length") == 2
    assert "def reverse(s):" in page.evaluate("document.querySelector('.turn.user pre').textContent")
    assert page.evaluate("new Set(growth).size") > 5, "it came in pieces"
    page.wait_for("document.getElementById('facts').textContent.includes('the first after')")
    assert page.complaints == []


def test_a_stopped_answer_frees_the_engine(page: ChromiumPage, served_pico: str) -> None:
    # Without its end tokens the model goes on until it is stopped.
    ends = json.dumps({str(token): -100 for token in END_TOKENS})
    page.evaluate(
        "{ const real = fetch; globalThis.fetch = (path, options) => { if (path.endsWith('completions'))"
        f" options.body = JSON.stringify({{...JSON.parse(options.body), logit_bias: {ends}}});"
        " return real(path, options); }; }"
    )
    page.evaluate("document.getElementById('max').value = 1900")
    page.type_text("#say", "Count.")
    page.press("Enter")
    page.wait_for("document.querySelector('.turn.assistant')?.textContent.length > 20")
    page.evaluate("document.getElementById('stop').click()")
    page.wait_for("document.getElementById('log').textContent.includes('Stopped.')")
    eventually(lambda: httpx.get(f"{served_pico}/v1/stats").json()["running"] is None)
    page.wait_for("document.getElementById('running').textContent === 'none'")


def test_text_of_the_model_is_never_taken_for_html(page: ChromiumPage) -> None:
    """The server's answer is replaced by one that tries."""
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    delta = {"content": evil, "reasoning_content": evil}
    chunk = {"choices": [{"delta": delta, "finish_reason": None}]}
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.evaluate(
        "{ const real = fetch; globalThis.fetch = (path, options) => path.endsWith('completions')"
        f" ? Promise.resolve(new Response({json.dumps(stream)})) : real(path, options); }}"
    )
    page.type_text("#say", evil)
    page.press("Enter")
    page.wait_for("document.querySelector('.turn.assistant details pre') !== null")
    page.wait_for("document.getElementById('stop').disabled")
    assert page.evaluate(TEXT) == evil
    assert page.evaluate("document.querySelectorAll('#log img, #log script').length") == 0
    assert page.complaints == []


def test_a_locked_server_is_said_plainly_and_opened_with_a_key(page: ChromiumPage) -> None:
    refusal = json.dumps({"error": {"message": "no key", "type": "x", "param": None, "code": "y"}})
    page.evaluate(
        "{ const real = fetch; globalThis.fetch = (path, options) =>"
        " options.headers.Authorization === 'Bearer secret' ? real(path, options)"
        f" : Promise.resolve(new Response({json.dumps(refusal)}, {{status: 401}})); }}"
    )
    page.wait_for("!document.getElementById('key-form').hidden")
    notice = page.evaluate("document.getElementById('notice-text').textContent")
    assert "API key" in notice and "401" in notice and "no key" in notice
    page.type_text("#key", "secret")
    page.press("Enter")
    page.wait_for("document.getElementById('notice').hidden")
    assert page.evaluate("sessionStorage.getItem('mach-api-key')") == "secret"
    assert page.evaluate("document.getElementById('key').value") == ""


def test_the_map_is_walked_with_the_keyboard(page: ChromiumPage) -> None:
    page.wait_for("document.getElementById('map-summary').textContent !== ''")
    page.evaluate("document.getElementById('map').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.press(key)
    told = page.evaluate("document.getElementById('map-cell').textContent")
    assert "expert 1" in told and ("in memory" in told or "on disk" in told)


def test_what_another_size_of_bank_would_do_is_drawn_and_told(served_narrow: str) -> None:
    assert CHROMIUM is not None
    body = {"model": "mach-pico", "prompt": "def reverse(s):", "max_tokens": 40}
    assert httpx.post(f"{served_narrow}/v1/completions", json=body, timeout=60).status_code == 200
    curve = httpx.get(f"{served_narrow}/v1/cache/stats").json()["miss_ratio_curve"]
    with ChromiumPage(CHROMIUM) as page:
        page.open(served_narrow)
        page.wait_for("document.getElementById('sizes-rows').rows.length === 4")
        told = page.evaluate(
            "[...document.getElementById('sizes-rows').rows]"
            ".map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
        for row, point in zip(told, curve["points"], strict=True):
            assert row[0].startswith(f"{point['relative']:g} ×")
            assert row[2] == f"{100 * point['hit_rate']:.1f} %"
            assert row[3] == f"{point['tokens_per_second']:.1f}"
        summary = page.evaluate("document.getElementById('sizes-summary').textContent")
        assert f"{curve['tokens']} decoded tokens" in summary
        assert page.evaluate(f"{DRAWN}('sizes')") > 5, "lines, points and letters"
        assert page.complaints == []


def test_with_every_expert_in_memory_the_page_says_why_there_is_no_forecast(page: ChromiumPage) -> None:
    page.wait_for(
        "document.getElementById('sizes-summary').textContent.includes('every expert is in memory')"
    )
    assert page.evaluate("document.getElementById('sizes-figure').hidden") is True
    assert page.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_on_a_phone(served_narrow: str, tmp_path: Path, dark: bool) -> None:
    assert CHROMIUM is not None
    with ChromiumPage(CHROMIUM, width=360, height=740, dark=dark) as page:
        page.open(served_narrow)
        page.wait_for("document.getElementById('state').textContent === 'ready'")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(20, 22, 24)") is dark

import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest

from mach_server.status_page import StatusPage

PAGE = StatusPage.load()
TEXT = PAGE.body.decode()


class Reader(HTMLParser):
    """Every attribute of every tag, and the text of labels' targets."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(TEXT)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


TAGS = Reader().tags


def test_it_is_served_with_its_length_type_and_tag(server) -> None:
    answer = server.client.get(f"{server.url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert int(answer.headers["content-length"]) == len(PAGE.body) == len(answer.content)
    assert answer.headers["etag"] == PAGE.etag
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_head_has_the_length_and_no_body(server) -> None:
    answer = server.client.head(f"{server.url}/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == len(PAGE.body)


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", {}', "*"])
def test_who_has_it_gets_304(server, known: str) -> None:
    answer = server.client.get(f"{server.url}/", headers={"If-None-Match": known.format(PAGE.etag)})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == PAGE.etag


def test_another_tag_gets_the_page(server) -> None:
    answer = server.client.get(f"{server.url}/", headers={"If-None-Match": '"other"'})
    assert answer.status_code == 200


def test_other_methods_are_refused(server) -> None:
    assert server.client.post(f"{server.url}/").status_code == 405


def test_the_policy_allows_its_own_style_and_script_and_nothing_from_elsewhere(server) -> None:
    policy = server.client.get(f"{server.url}/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["frame-ancestors"] == "'none'"
    assert (rules["connect-src"], rules["img-src"]) == ("'self'", "data:")
    for kind in ("style", "script"):
        (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", TEXT, re.DOTALL)
        digest = b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_it_refers_to_nothing_outside_itself() -> None:
    assert not re.search(r"https?://|//[a-z]|@import|url\(", TEXT)
    for tag, attributes in TAGS:
        assert "src" not in attributes and "style" not in attributes, (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if "href" in attributes:
            assert attributes["href"] == "data:,"


def test_nothing_is_inserted_as_html() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|DOMParser", TEXT)


def test_every_field_has_a_name_and_every_id_exists_once() -> None:
    ids = [attributes["id"] for _, attributes in TAGS if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = {attributes["for"] for tag, attributes in TAGS if tag == "label" and "for" in attributes}
    inside = set(re.findall(r"<label>[^<]*<input id=\"(\w+)\"", TEXT))
    fields = {attributes["id"] for tag, attributes in TAGS if tag in ("input", "textarea")}
    assert fields == named | inside
    assert set(re.findall(r"\bat\(\"([\w-]+)\"\)", TEXT)) <= set(ids)


def test_motion_is_given_up_where_it_is_not_wanted() -> None:
    assert "prefers-reduced-motion" in TEXT and "prefers-color-scheme: dark" in TEXT

import pytest

from mach_server.answer_request import FunctionTool
from mach_server.conversation_parts import ContentPart, arguments_of, check_tools, one_system, text_of
from mach_server.errors import BadRequestError


def test_the_first_system_messages_become_one() -> None:
    def system(text: str) -> dict[str, str]:
        return {"role": "system", "content": text}

    user = {"role": "user", "content": "q"}
    assert one_system([system("a"), system("b"), user, system("c")]) == [system("a\n\nb"), user, system("c")]
    assert one_system([system("a"), user]) == [system("a"), user]
    named = {**system("b"), "name": "n"}
    assert one_system([system("a"), named, user]) == [system("a"), named, user]
    assert one_system([]) == []


def test_texts_are_joined_and_everything_else_is_named_by_its_place() -> None:
    parts = [ContentPart(type="text", text="a"), ContentPart(type="refusal", refusal="b")]
    assert text_of(parts, "content") == "a\nb"
    assert text_of("as it is", "content") == "as it is"
    with pytest.raises(BadRequestError, match="'input_audio'") as caught:
        text_of([*parts, ContentPart(type="input_audio")], "content")
    assert caught.value.param == "content[2].type"


def test_arguments_are_objects_and_nothing_is_an_empty_one() -> None:
    assert arguments_of('{"x": [1]}', "p") == {"x": [1]}
    assert arguments_of(" ", "p") == {}


@pytest.mark.parametrize("name", ["", "a b", "ü", "x" * 129, "a\n"])
def test_a_name_that_no_api_allows_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check_tools((FunctionTool(name=name, param="tools[0]", name_field="name"),), 5)
    assert caught.value.param == "tools[0].name"

import pytest

from mach_decode.sampling import SamplingParams
from mach_server.answer_request import AnswerRequest, FunctionTool, ToolRules
from mach_server.errors import BadRequestError
from mach_server.template_options import OFF, ON, TemplateOptions

QWEN = "{% if enable_thinking is defined %}<think>{% endif %}{{ tools }}"
HARMONY = "Reasoning: {{ reasoning_effort }} {{ tools }}"
PLAIN = "{{ messages }}"


def asked(**fields) -> AnswerRequest:
    return AnswerRequest(messages=({"role": "user", "content": "x"},), sampling=SamplingParams(), **fields)


@pytest.mark.parametrize(
    ("template", "effort", "options"),
    [
        (QWEN, None, {}),
        (QWEN, "none", {"enable_thinking": False}),
        (QWEN, "high", {"enable_thinking": True}),
        (QWEN, ON, {"enable_thinking": True}),
        (HARMONY, "low", {"reasoning_effort": "low"}),
        (HARMONY, ON, {}),
        (PLAIN, OFF, {}),
    ],
)
def test_an_effort_becomes_the_template_s_own_variable(template: str, effort, options) -> None:
    assert TemplateOptions(template).options_of(asked(effort=effort)) == options


@pytest.mark.parametrize(
    ("template", "effort"), [(HARMONY, "none"), (HARMONY, "xhigh"), (PLAIN, "low"), (PLAIN, ON)]
)
def test_an_effort_that_the_template_has_no_word_for_is_refused(template: str, effort: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        TemplateOptions(template).options_of(asked(effort=effort, effort_field="reasoning.effort"))
    assert caught.value.param == "reasoning.effort"


def test_the_client_s_own_variable_wins() -> None:
    request = asked(effort="high", template_options={"enable_thinking": False})
    assert TemplateOptions(QWEN).options_of(request) == {"enable_thinking": False}


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "enable_thinkin", "messages"])
def test_a_variable_that_is_reserved_or_unknown_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError, match=name) as caught:
        TemplateOptions(QWEN).options_of(asked(template_options={name: 1}))
    assert caught.value.param == "chat_template_kwargs"


def test_tools_need_a_template_that_shows_them() -> None:
    request = asked(tools=ToolRules(tools=(FunctionTool(name="f"),)))
    assert TemplateOptions(QWEN).options_of(request) == {}
    with pytest.raises(BadRequestError, match="tools"):
        TemplateOptions(PLAIN).options_of(request)


def test_a_template_that_is_a_program_is_taken_to_know_everything() -> None:
    assert TemplateOptions(None).knows("whatever")

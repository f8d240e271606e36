"""Invent tools: thousands of verb-noun functions with random parameters, so that the schema has to be read.

Owns how a tool, its question and its arguments are drawn from a WordPool. The same code makes training
tools (from the training words) and the unseen tools of the evaluation (from held-out words).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools import Parameter, Request, Tool
from words import ALIKE, CITIES, PEOPLE, PLAIN_VALUES, WordPool, invented_word

Chance = random.Random
CODES = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What a tool is about: a verb and a noun, as words with blanks."""

    verb: str
    noun: str


def _code(chance: Chance) -> str:
    letters = "".join(chance.choices(CODES, k=chance.choice((1, 2, 3))))
    return f"{letters}{chance.choice(('', '-'))}{chance.randint(1, 99999)}"


def _file_name(chance: Chance) -> str:
    folder = chance.choice(("", "/", "data/", "/srv/"))
    name = chance.choice(PLAIN_VALUES)
    ending = chance.choice(("txt", "csv", "py", "md"))
    return f"{folder}{name}.{ending}"


TEXT_VALUES: tuple[Callable[[Chance], str], ...] = (
    lambda c: c.choice(PLAIN_VALUES),
    lambda c: c.choice(PLAIN_VALUES).capitalize(),
    lambda c: f"{c.choice(PLAIN_VALUES)} {c.choice(PLAIN_VALUES)}",
    lambda c: f"{c.choice(PLAIN_VALUES).capitalize()} {c.choice(PLAIN_VALUES).capitalize()}",
    lambda c: c.choice(PEOPLE),
    lambda c: f"{c.choice(PEOPLE)} {invented_word(c).capitalize()}",
    lambda c: c.choice(CITIES),
    lambda c: invented_word(c),
    lambda c: invented_word(c).capitalize(),
    _code,
    lambda c: f"{c.randint(1990, 2039)}-{c.randint(1, 12):02d}-{c.randint(1, 28):02d}",
    lambda c: f"{c.randint(0, 23):02d}:{c.randint(0, 59):02d}",
    lambda c: f"{c.choice(PEOPLE).lower()}@{c.choice(PLAIN_VALUES)}.{c.choice(('com', 'org', 'net'))}",
    _file_name,
    lambda c: f"{c.choice(PLAIN_VALUES)}_{c.choice(PLAIN_VALUES)}",
)


def topic_of(chance: Chance, words: WordPool) -> Topic:
    """A random topic: mostly listed words, sometimes any word of the corpus, sometimes an invented one."""
    verb = chance.choice(words.verbs if chance.random() < 0.8 else words.others)
    draw = chance.random()
    if draw < 0.55:
        noun = chance.choice(words.nouns)
    elif draw < 0.75:
        noun = chance.choice(words.others)
    elif draw < 0.93:
        noun = f"{chance.choice(words.others + words.nouns)} {chance.choice(words.nouns)}"
    else:
        noun = invented_word(chance)
    return Topic(verb=verb, noun=noun)


def tool_name(chance: Chance, topic: Topic) -> str:
    """The topic as an identifier: snake case mostly; sometimes camel case, or a word that tells nothing."""
    verb, noun = topic.verb.replace(" ", "_"), topic.noun.replace(" ", "_")
    draw = chance.random()
    if draw < 0.62:
        return f"{verb}_{noun}"
    if draw < 0.72:
        return f"{noun}_{verb}"
    if draw < 0.82:
        head, *rest = f"{verb}_{noun}".split("_")
        return head + "".join(word.capitalize() for word in rest)
    if draw < 0.88:
        return f"{verb}-{noun}".replace("_", "-")
    if draw < 0.94:
        return noun
    return invented_word(chance)


def description_of(chance: Chance, topic: Topic) -> str:
    """One line that names the verb and the noun."""
    verb, noun = topic.verb.capitalize(), topic.noun
    forms = (
        f"{verb} a {noun}.",
        f"{verb} the {noun}.",
        f"{verb} {noun}",
        f"{verb} one {noun} and return the result.",
        f"Use this to {topic.verb} a {noun}.",
        f"{noun.capitalize()}: {topic.verb}.",
        f"{verb} the given {noun}.",
    )
    return chance.choice(forms)


def parameter_name(chance: Chance, words: WordPool, type_: str) -> str:
    """A name that suits the type most of the time, and any word otherwise; some have two words."""
    listed = {
        "string": words.texts,
        "integer": words.integers,
        "number": words.numbers,
        "boolean": words.switches,
    }
    first = chance.choice(listed.get(type_, words.nouns) if chance.random() < 0.75 else words.others)
    draw = chance.random()
    if draw < 0.12 and type_ != "boolean":
        return f"{chance.choice(words.nouns + words.others)}_{first}"
    if draw < 0.17 and type_ == "string":
        return f"{first}_{chance.choice(('id', 'name', 'code'))}"
    if draw < 0.24 and type_ in ("integer", "number"):
        return f"{chance.choice(('max', 'min', 'total'))}_{first}"
    return first


def tool_of(chance: Chance, words: WordPool, topic: Topic) -> Tool:
    """A tool for `topic` with none to four parameters."""
    parameters: dict[str, Parameter] = {}
    for _ in range(chance.choices((0, 1, 2, 3, 4), (3, 34, 34, 20, 9))[0]):
        type_ = chance.choices(("string", "integer", "number", "boolean", "array"), (50, 22, 13, 10, 5))[0]
        name = parameter_name(chance, words, type_)
        spoken = name.replace("_", " ")
        choices: tuple[str, ...] = ()
        if type_ == "string" and chance.random() < 0.12:
            choices = tuple(chance.sample(PLAIN_VALUES, chance.randint(2, 4)))
        descriptions = (
            "",
            "",
            f"The {spoken}.",
            f"{spoken.capitalize()} of the {topic.noun}.",
            f"the {spoken} to use",
        )
        parameters[name] = Parameter(
            name=name,
            type=type_,
            description=chance.choice(descriptions),
            choices=choices,
            required=type_ != "boolean" and chance.random() < 0.85,
        )
    return Tool(
        name=tool_name(chance, topic),
        description=description_of(chance, topic),
        parameters=tuple(parameters.values()),
    )


def value_of(chance: Chance, parameter: Parameter) -> Any:
    """A value of the parameter's type."""
    if parameter.choices:
        return chance.choice(parameter.choices)
    if parameter.type == "integer":
        return chance.choice((chance.randint(1, 20), chance.randint(1, 999), chance.randint(1, 99999)))
    if parameter.type == "number":
        return chance.choice(
            (round(chance.uniform(0, 100), 1), round(chance.uniform(0, 9), 2), chance.randint(1, 500))
        )
    if parameter.type == "boolean":
        return chance.random() < 0.7
    if parameter.type == "array":
        return chance.sample(PLAIN_VALUES, chance.randint(2, 3))
    return chance.choice(TEXT_VALUES)(chance)


def spoken_value(chance: Chance, value: Any) -> str:
    """The value as a person writes it."""
    if isinstance(value, list):
        return ", ".join(value[:-1]) + " and " + value[-1]
    if isinstance(value, str) and chance.random() < 0.2:
        return f'"{value}"' if chance.random() < 0.6 else f"'{value}'"
    return str(value)


def mention(chance: Chance, parameter: Parameter, value: Any, style: str) -> str:
    """One argument inside a question."""
    name = parameter.name.replace("_", " ")
    if isinstance(value, bool):
        return chance.choice((f"{name}", f"make it {name}")) if value else f"not {name}"
    spoken = spoken_value(chance, value)
    if style == "equals":
        return f"{parameter.name}={value if not isinstance(value, list) else ','.join(value)}"
    if style == "colon":
        return f"{name}: {spoken}"
    if style == "is":
        return f"the {name} is {spoken}"
    if isinstance(value, int) and parameter.type == "integer" and chance.random() < 0.35:
        return f"{spoken} {name}"
    return f"{name} {spoken}"


def opening(chance: Chance, topic: Topic, *, verb_needed: bool) -> str:
    """The part of the question that says which tool is meant."""
    verb = topic.verb
    if not verb_needed:
        for group in ALIKE:
            if verb in group and chance.random() < 0.6:
                verb = chance.choice(group)
        if chance.random() < 0.12:
            return chance.choice(
                (f"I need the {topic.noun}", f"What about the {topic.noun}", f"{topic.noun}")
            )
    article = chance.choice(("the", "a", "this", "my", "one", "the"))
    plain = f"{verb} {article} {topic.noun}"
    forms = (
        plain.capitalize(),
        plain.capitalize(),
        f"Please {plain}",
        f"Can you {plain}",
        f"I want to {plain}",
        f"Could you {plain}",
        f"{plain}",
        f"I would like to {plain}",
        f"Help me {plain}",
        f"Now {plain}",
    )
    return chance.choice(forms)


def question_of(
    chance: Chance, topic: Topic, chosen: list[tuple[Parameter, Any]], *, verb_needed: bool
) -> str:
    """A question that names every chosen argument, in any order."""
    start = opening(chance, topic, verb_needed=verb_needed)
    end = chance.choice((".", "?", "", ".")) if not start.startswith(("Can", "Could", "What")) else "?"
    if not chosen:
        return start + end
    if len(chosen) == 1 and isinstance(chosen[0][1], (str, int, float)) and chance.random() < 0.45:
        value = chosen[0][1]
        if not isinstance(value, bool):
            link = chance.choice((" ", " for ", " at ", ": ", " of ", " to ", " with "))
            return start + link + spoken_value(chance, value) + end
    order = chosen[:]
    if chance.random() < 0.35:
        chance.shuffle(order)
    style = chance.choices(("plain", "colon", "is", "equals"), (60, 15, 15, 10))[0]
    parts = [mention(chance, parameter, value, style) for parameter, value in order]
    listed = (
        parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + chance.choice((" and ", ", ")) + parts[-1]
    )
    if style == "is":
        return f"{start}. {listed[0].upper()}{listed[1:]}."
    if style == "colon":
        return f"{start}{chance.choice((', ', ': ', chr(10)))}{listed}"
    if chance.random() < 0.12:
        return f"With {listed}, {start[0].lower()}{start[1:]}{end}"
    return start + chance.choice((" with ", " for ", ", ", " using ")) + listed + end


def request_of(chance: Chance, tool: Tool, topic: Topic, *, verb_needed: bool) -> Request:
    """A question for `tool` with its arguments; an optional one may go unmentioned, and uncalled."""
    chosen = [(p, value_of(chance, p)) for p in tool.parameters if p.required or chance.random() < 0.6]
    response, answer = outcome(chance, topic)
    return Request(
        tool=tool,
        question=question_of(chance, topic, chosen, verb_needed=verb_needed),
        arguments={parameter.name: value for parameter, value in chosen},
        response=response,
        answer=answer,
    )


def outcome(chance: Chance, topic: Topic) -> tuple[str, str]:
    """(what the tool returns, what the assistant makes of it)."""
    value = chance.choice((str(chance.randint(1, 9999)), chance.choice(TEXT_VALUES)(chance)))
    forms = (
        (value, f"The result is {value}."),
        (json.dumps({"result": value}), f"The result is {value}."),
        (json.dumps({topic.noun.replace(" ", "_"): value}), f"The {topic.noun} is {value}."),
        ("ok", f"Done: {topic.verb} {topic.noun}."),
        (f"error: {value} not found", f"Sorry, that failed: {value} not found."),
    )
    return chance.choice(forms)


def scene(chance: Chance, words: WordPool, count: int) -> tuple[list[Tool], Request]:
    """`count` different tools in random order, and a request for one of them.

    One other tool may share the wanted tool's verb or noun. Where a noun is shared the question needs the
    verb.
    """
    wanted = topic_of(chance, words)
    topics, verb_needed = [wanted], False
    while len(topics) < count:
        other = topic_of(chance, words)
        draw = chance.random()
        if draw < 0.15:
            other = Topic(verb=other.verb, noun=wanted.noun)
        elif draw < 0.35:
            other = Topic(verb=wanted.verb, noun=other.noun)
        if other in topics:
            continue
        verb_needed |= other.noun == wanted.noun
        topics.append(other)
    tools = [tool_of(chance, words, topic) for topic in topics]
    if len({tool.name for tool in tools}) < count:
        return scene(chance, words, count)
    request = request_of(chance, tools[0], wanted, verb_needed=verb_needed)
    chance.shuffle(tools)
    return tools, request

"""The tools that the model is trained on by name: everyday functions with natural questions.

Owns the families and their questions. A family has several names for its tool and its parameters, so that
even here the schema has to be read. One question in ten is held out by its text (`held_out`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools import Parameter, Request, Tool, bucket
from words import CITIES, PEOPLE

Values = list[Any]
Chance = random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A tool in its variants; `questions` and `answer` take the values, `result` makes the response."""

    names: tuple[str, ...]
    description: str
    parameters: tuple[tuple[tuple[str, ...], str], ...]
    questions: tuple[str, ...]
    values: Callable[[Chance], Values]
    result: Callable[[Chance, Values], str]
    answer: str

    def request(self, chance: Chance) -> Request:
        """One question with its call."""
        names = [chance.choice(choices) for choices, _ in self.parameters]
        parameters = tuple(
            Parameter(name=name, type=type_) for name, (_, type_) in zip(names, self.parameters, strict=True)
        )
        tool = Tool(name=chance.choice(self.names), description=self.description, parameters=parameters)
        values = self.values(chance)
        response = self.result(chance, values)
        return Request(
            tool=tool,
            question=chance.choice(self.questions).format(*values),
            arguments=dict(zip(names, values, strict=True)),
            response=response,
            answer=self.answer.format(*values, result=response),
        )


def held_out(question: str) -> bool:
    """True for one question in ten: never trained on, used to measure."""
    return bucket("question " + question, 10) == 0


def family(
    names: str,
    description: str,
    parameters: str,
    questions: str,
    values: Callable[[Chance], Values],
    result: Callable[[Chance, Values], str],
    answer: str,
) -> Family:
    """Short form: `names` by blanks, `parameters` as `a|b:type` by blanks, `questions` by lines."""
    split = [entry.split(":") for entry in parameters.split()]
    return Family(
        names=tuple(names.split()),
        description=description,
        parameters=tuple((tuple(choices.split("|")), type_) for choices, type_ in split),
        questions=tuple(line.strip() for line in questions.strip().split("\n")),
        values=values,
        result=result,
        answer=answer,
    )


CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris Italy:Rome Japan:Tokyo Spain:Madrid Germany:Berlin Norway:Oslo Egypt:Cairo Peru:Lima "
        "Austria:Vienna Ireland:Dublin Greece:Athens Poland:Warsaw Finland:Helsinki Kenya:Nairobi "
        "Portugal:Lisbon Ghana:Accra Cuba:Havana Hungary:Budapest "
        "Sweden:Stockholm Denmark:Copenhagen Thailand:Bangkok Iran:Tehran "
        "Chile:Santiago Canada:Ottawa Turkey:Ankara Russia:Moscow China:Beijing Belgium:Brussels"
    ).split()
)
CURRENCIES = "USD EUR GBP JPY CHF CAD AUD INR SEK NOK".split()
TICKERS = "AAPL MSFT NVDA AMZN GOOG META TSLA INTC AMD IBM ORCL CSCO QCOM ADBE NFLX".split()
TERMS = """
cache token expert matrix router kernel tensor thread buffer socket parser lexer iterator generator
closure decorator mutex queue stack graph vector scalar gradient entropy lambda module package pipeline
protocol
""".split()
FILES = """
README.md setup.py main.py config.json notes.txt data.csv app.py server.log model.py tests.py index.html
Makefile pyproject.toml report.txt
""".split()
FOLDERS = "src docs lib tests build tools assets scripts /tmp /etc examples".split()
LANGUAGES = "French German Spanish Italian Japanese Korean Polish Greek Dutch Swedish".split()
PHRASES = (
    "hello|good morning|thank you|where is the station|see you soon|one coffee please|how are you|"
    "the train is late|good night|nice to meet you"
).split("|")
MESSAGES = (
    "the build is done|the tests pass|I will be late|the server is down|lunch is at noon|the model is ready|"
    "the meeting is cancelled|dinner is at seven|the report is finished"
).split("|")
EVENTS = (
    "a team meeting|lunch|a code review|the release|a dentist visit|a phone call|the workshop|a walk"
).split("|")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
UNITS = (("kilometers", "miles"), ("kilograms", "pounds"), ("meters", "feet"), ("liters", "gallons"))
SKIES = "clear cloudy rainy snowy windy foggy".split()


def _expression(chance: Chance) -> str:
    a, b, c = chance.randint(2, 999), chance.randint(2, 999), chance.randint(2, 99)
    return chance.choice(
        (f"{a} * {b} + {c}", f"({a} + {b}) * {c}", f"{a} - {b} * {c}", f"{c} ** 2", f"{a} / {c}")
    )


def _weather(chance: Chance, values: Values) -> str:
    return json.dumps({"temperature": chance.randint(-9, 36), "sky": chance.choice(SKIES)})


def _number(low: float, high: float) -> Callable[[Chance, Values], str]:
    return lambda chance, values: f"{chance.uniform(low, high):.2f}"


def _said(text: str) -> Callable[[Chance, Values], str]:
    return lambda chance, values: text


FAMILIES = (
    family(
        "get_weather weather fetch_weather current_weather weather_lookup",
        "Get the current weather for a city.",
        "city|location|place:string",
        """What is the weather in {0}?
        How is the weather in {0} today?
        Is it cold in {0} right now?
        Tell me the weather for {0}.
        I am going to {0}. What should I wear?
        What's the weather like in {0}?""",
        lambda c: [c.choice(CITIES)],
        _weather,
        "This is the weather in {0}: {result}",
    ),
    family(
        "add sum_numbers add_numbers plus",
        "Add two numbers.",
        "a|x|first:number b|y|second:number",
        """What is {0} + {1}?
        Add {0} and {1}.
        What is the sum of {0} and {1}?
        How much is {0} plus {1}?""",
        lambda c: [c.randint(1, 9999), c.randint(1, 9999)],
        lambda c, v: str(v[0] + v[1]),
        "{0} + {1} = {result}.",
    ),
    family(
        "multiply mul times product",
        "Multiply two numbers.",
        "a|x|first:number b|y|second:number",
        """What is {0} * {1}?
        Multiply {0} by {1}.
        What is {0} times {1}?
        What is the product of {0} and {1}?""",
        lambda c: [c.randint(1, 999), c.randint(1, 999)],
        lambda c, v: str(v[0] * v[1]),
        "{0} * {1} = {result}.",
    ),
    family(
        "subtract minus difference",
        "Subtract the second number from the first.",
        "a|x|first:number b|y|second:number",
        """What is {0} - {1}?
        What is {0} minus {1}?
        What is the difference of {0} and {1}?""",
        lambda c: [c.randint(500, 9999), c.randint(1, 499)],
        lambda c, v: str(v[0] - v[1]),
        "{0} - {1} = {result}.",
    ),
    family(
        "calculator calculate evaluate eval_expression",
        "Evaluate an arithmetic expression.",
        "expression|expr|formula:string",
        """Compute {0}.
        What is {0}?
        Please calculate {0}.
        Evaluate {0} for me.""",
        lambda c: [_expression(c)],
        _number(1, 9999),
        "{0} is {result}.",
    ),
    family(
        "get_time current_time time_in",
        "Get the current time in a city.",
        "city|location|timezone:string",
        """What time is it in {0}?
        Tell me the time in {0}.
        Is it late in {0} now?""",
        lambda c: [c.choice(CITIES)],
        lambda c, v: f"{c.randint(0, 23):02d}:{c.randint(0, 59):02d}",
        "It is {result} in {0}.",
    ),
    family(
        "lookup_capital get_capital capital_of",
        "Look up the capital of a country.",
        "country|nation:string",
        """What is the capital of {0}?
        Look up the capital of {0}.
        Which city is the capital of {0}?""",
        lambda c: [c.choice(list(CAPITALS))],
        lambda c, v: CAPITALS[v[0]],
        "The capital of {0} is {result}.",
    ),
    family(
        "convert_currency exchange currency_convert",
        "Convert an amount of money from one currency to another.",
        "amount|value:number from_currency|source|from:string to_currency|target|to:string",
        """Convert {0} {1} to {2}.
        How much is {0} {1} in {2}?
        What are {0} {1} worth in {2}?""",
        lambda c: [c.randint(1, 9999), *c.sample(CURRENCIES, 2)],
        _number(1, 9999),
        "{0} {1} are {result} {2}.",
    ),
    family(
        "get_stock_price stock_price quote",
        "Get the latest price of a stock.",
        "symbol|ticker:string",
        """What is the price of {0}?
        How much is {0} stock?
        Get me a quote for {0}.
        What does {0} trade at?""",
        lambda c: [c.choice(TICKERS)],
        _number(20, 900),
        "{0} is at {result} dollars.",
    ),
    family(
        "read_file open_file cat",
        "Read a file and return its text.",
        "path|filename|file:string",
        """Show me {0}.
        Read the file {0}.
        What is in {0}?
        Open {0} and tell me what it says.""",
        lambda c: [c.choice(("", "src/", "docs/", "lib/", "tests/")) + c.choice(FILES)],
        lambda c, v: c.choice(("hello world", "version = 1", "TODO: write tests", 'print("ok")')),
        "The file {0} says: {result}",
    ),
    family(
        "list_files ls list_directory",
        "List the files in a directory.",
        "path|directory|folder:string",
        """List the files in {0}.
        What files are in {0}?
        Show the folder {0}.""",
        lambda c: [c.choice(FOLDERS)],
        lambda c, v: ", ".join(c.sample(FILES, 3)),
        "The folder {0} has {result}.",
    ),
    family(
        "search grep search_code find_text",
        "Search the project for a word.",
        "query|pattern|text:string",
        """Search for {0}.
        Where is {0} used?
        Find {0} in the code.""",
        lambda c: [c.choice(TERMS)],
        lambda c, v: f"{c.choice(FILES)}:{c.randint(1, 300)}",
        "I found {0} in {result}.",
    ),
    family(
        "set_timer timer start_timer",
        "Start a timer.",
        "minutes|duration:integer",
        """Set a timer for {0} minutes.
        Remind me in {0} minutes.
        Start a {0} minute timer.""",
        lambda c: [c.randint(2, 180)],
        _said("ok"),
        "The timer is set for {0} minutes.",
    ),
    family(
        "send_email send_message email",
        "Send a message to a person.",
        "to|recipient:string body|message|text:string",
        """Tell {0} that {1}.
        Send {0} a message: {1}
        Write to {0} that {1}.""",
        lambda c: [c.choice(PEOPLE), c.choice(MESSAGES)],
        _said("sent"),
        "I sent the message to {0}.",
    ),
    family(
        "define get_definition dictionary",
        "Get the definition of a word.",
        "word|term:string",
        """What does {0} mean?
        Define {0}.
        Give me the definition of {0}.""",
        lambda c: [c.choice(TERMS)],
        lambda c, v: f"a kind of {c.choice(TERMS)}",
        "The word {0} means {result}.",
    ),
    family(
        "translate translate_text",
        "Translate text to another language.",
        "text|phrase:string language|target|to:string",
        """Translate "{0}" to {1}.
        How do you say "{0}" in {1}?
        What is "{0}" in {1}?""",
        lambda c: [c.choice(PHRASES), c.choice(LANGUAGES)],
        lambda c, v: c.choice(("bonjour", "danke", "hola", "ciao")),
        '"{0}" in {1} is "{result}".',
    ),
    family(
        "random_number randint roll",
        "Return a random integer in a range.",
        "low|min|minimum:integer high|max|maximum:integer",
        """Give me a random number from {0} to {1}.
        Pick a number between {0} and {1}.""",
        lambda c: [c.randint(1, 50), c.randint(51, 999)],
        lambda c, v: str(c.randint(v[0], v[1])),
        "Your number is {result}.",
    ),
    family(
        "create_event add_event schedule",
        "Add an event to the calendar.",
        "title|name:string day|date:string",
        """Add {0} on {1}.
        Schedule {0} for {1}.
        Put {0} in my calendar on {1}.""",
        lambda c: [c.choice(EVENTS), c.choice(DAYS)],
        _said("created"),
        "I added {0} on {1}.",
    ),
    family(
        "convert_units unit_convert",
        "Convert a value from one unit to another.",
        "value|amount:number from_unit|source|from:string to_unit|target|to:string",
        """Convert {0} {1} to {2}.
        How many {2} are {0} {1}?
        What is {0} {1} in {2}?""",
        lambda c: [c.randint(1, 999), *c.choice(UNITS)[:: c.choice((1, -1))]],
        _number(1, 999),
        "{0} {1} are {result} {2}.",
    ),
    family(
        "run_tests test pytest",
        "Run the tests in a file or folder.",
        "path|target:string",
        """Run the tests in {0}.
        Test {0}, please.
        Do the tests in {0} pass?""",
        lambda c: [c.choice(FOLDERS + FILES)],
        lambda c, v: f"{c.randint(1, 99)} passed",
        "I ran the tests in {0}: {result}.",
    ),
    family(
        "find_route directions get_route",
        "Find the way from one city to another.",
        "origin|start|from:string destination|end|to:string",
        """How do I get from {0} to {1}?
        Find a route from {0} to {1}.
        Show me the way from {0} to {1}.""",
        lambda c: c.sample(CITIES, 2),
        lambda c, v: f"{c.randint(30, 2000)} km",
        "The way from {0} to {1} is {result}.",
    ),
    family(
        "play_music play_song music",
        "Play music of an artist.",
        "artist|performer:string",
        """Play something by {0}.
        I want to hear {0}.
        Put on some music by {0}.""",
        lambda c: [c.choice(PEOPLE) + " " + c.choice(CITIES)],
        _said("playing"),
        "Now playing {0}.",
    ),
)


def samples(chance: Chance, *, evaluation: bool) -> Request:
    """A random request, from the held-out questions or from the others."""
    while True:
        request = chance.choice(FAMILIES).request(chance)
        if held_out(request.question) is evaluation:
            return request

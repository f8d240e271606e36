"""Hand-written tools that only the evaluation uses, with the questions that a person would ask.

Owns these tools. Their names are kept out of the training data (conversations.py checks); their words may
occur there.
"""

from __future__ import annotations

import random
from typing import Any

from tools import Parameter, Request, Tool


def tool(name: str, description: str, **types: str) -> Tool:
    """A tool whose parameters are all required; `types` maps a parameter's name to its JSON type."""
    parameters = tuple(Parameter(name=key, type=type_) for key, type_ in types.items())
    return Tool(name=name, description=description, parameters=parameters)


CASES: tuple[tuple[Tool, tuple[tuple[str, dict[str, Any]], ...]], ...] = (
    (
        tool("reserve_table", "Reserve a table at a restaurant.", restaurant="string", guests="integer"),
        (
            ("Reserve a table at Osteria Blu for 4 guests.", {"restaurant": "Osteria Blu", "guests": 4}),
            ("Please reserve a table for 2 guests at Sakura.", {"restaurant": "Sakura", "guests": 2}),
        ),
    ),
    (
        tool(
            "dim_lights", "Set the brightness of the lights in a room.", room="string", brightness="integer"
        ),
        (
            ("Dim the lights in the kitchen to brightness 30.", {"room": "kitchen", "brightness": 30}),
            ("Set the bedroom lights to 15.", {"room": "bedroom", "brightness": 15}),
        ),
    ),
    (
        tool("track_parcel", "Track a parcel by its number.", parcel_number="string"),
        (
            ("Where is parcel ZX-4471?", {"parcel_number": "ZX-4471"}),
            ("Track the parcel QT901.", {"parcel_number": "QT901"}),
        ),
    ),
    (
        tool(
            "get_tide_times",
            "Get the times of high and low tide for a harbor.",
            harbor="string",
            date="string",
        ),
        (
            ("Tide times for Whitby on 2026-03-04?", {"harbor": "Whitby", "date": "2026-03-04"}),
            ("When is high tide in Brest on 2025-11-30?", {"harbor": "Brest", "date": "2025-11-30"}),
        ),
    ),
    (
        tool("kill_process", "Stop a running process by its pid.", pid="integer"),
        (("Kill process 8812.", {"pid": 8812}), ("Please stop the process with pid 417.", {"pid": 417})),
    ),
    (
        tool("mint_badge", "Make a badge for a visitor.", visitor="string", color="string"),
        (
            ("Mint a badge for visitor Ursula in green.", {"visitor": "Ursula", "color": "green"}),
            ("Make a red badge for Tobias.", {"visitor": "Tobias", "color": "red"}),
        ),
    ),
    (
        tool("git_checkout", "Check out a git branch.", branch="string"),
        (
            ("Check out the branch feature-x.", {"branch": "feature-x"}),
            ("Switch to git branch develop.", {"branch": "develop"}),
        ),
    ),
    (
        tool("irrigate_field", "Irrigate a field for some minutes.", field="string", minutes="integer"),
        (
            ("Irrigate the field North for 25 minutes.", {"field": "North", "minutes": 25}),
            ("Give field B7 water for 40 minutes.", {"field": "B7", "minutes": 40}),
        ),
    ),
    (
        tool("lookup_isbn", "Look up a book by its ISBN.", isbn="string"),
        (
            ("Which book has the ISBN 9780131103627?", {"isbn": "9780131103627"}),
            ("Look up ISBN 0596007124.", {"isbn": "0596007124"}),
        ),
    ),
    (
        tool("tune_string", "Tune one string of an instrument.", instrument="string", note="string"),
        (
            ("Tune the guitar to E.", {"instrument": "guitar", "note": "E"}),
            ("Tune my violin, note A.", {"instrument": "violin", "note": "A"}),
        ),
    ),
    (
        tool("ship_order", "Ship an order to an address.", order_id="integer", express="boolean"),
        (
            ("Ship order 55102 express.", {"order_id": 55102, "express": True}),
            ("Ship the order 731, not express.", {"order_id": 731, "express": False}),
        ),
    ),
    (
        tool("sql_query", "Run an SQL query on a database.", database="string", sql="string"),
        (
            ('Run "SELECT 1" on the database sales.', {"database": "sales", "sql": "SELECT 1"}),
            (
                'On database crm run the sql "SELECT name FROM users".',
                {"database": "crm", "sql": "SELECT name FROM users"},
            ),
        ),
    ),
    (
        tool(
            "set_thermostat", "Set the target temperature of a thermostat.", zone="string", celsius="number"
        ),
        (
            ("Set the thermostat in zone attic to 19.5.", {"zone": "attic", "celsius": 19.5}),
            ("Thermostat: zone hall, celsius 21.", {"zone": "hall", "celsius": 21}),
        ),
    ),
    (
        tool("roll_dice", "Roll some dice with a number of sides.", dice="integer", sides="integer"),
        (
            ("Roll 3 dice with 20 sides.", {"dice": 3, "sides": 20}),
            ("Roll 2 dice, sides 6.", {"dice": 2, "sides": 6}),
        ),
    ),
    (
        tool(
            "pet_adoption",
            "List pets of a species that can be adopted in a city.",
            species="string",
            city="string",
        ),
        (
            ("Which cats can I adopt in Ghent? The species is cat.", {"species": "cat", "city": "Ghent"}),
            ("Adoption of a pet: species rabbit, city Graz.", {"species": "rabbit", "city": "Graz"}),
        ),
    ),
    (
        tool("brew_espresso", "Brew espresso with a number of shots.", shots="integer"),
        (("Brew an espresso with 2 shots.", {"shots": 2}), ("Make me 3 shots of espresso.", {"shots": 3})),
    ),
    (
        tool("mute_channel", "Mute a chat channel for some hours.", channel="string", hours="integer"),
        (
            ("Mute the channel random for 8 hours.", {"channel": "random", "hours": 8}),
            ("Mute #builds for 3 hours.", {"channel": "#builds", "hours": 3}),
        ),
    ),
    (
        tool("renew_passport", "Renew the passport of a person.", full_name="string", years="integer"),
        (
            ("Renew the passport of Ingrid Vaal for 10 years.", {"full_name": "Ingrid Vaal", "years": 10}),
            ("Passport renewal, full name Otto Brandt, years 5.", {"full_name": "Otto Brandt", "years": 5}),
        ),
    ),
    (
        tool("resize_image", "Resize an image file to a width in pixels.", image="string", width="integer"),
        (
            ("Resize the image cat.png to a width of 640.", {"image": "cat.png", "width": 640}),
            ("Resize banner.jpg, width 1200.", {"image": "banner.jpg", "width": 1200}),
        ),
    ),
    (
        tool("find_constellation", "Find which constellation a star belongs to.", star="string"),
        (
            ("Which constellation does the star Vega belong to?", {"star": "Vega"}),
            ("Find the constellation of Rigel.", {"star": "Rigel"}),
        ),
    ),
)
"""Each tool with its questions and the arguments that are expected."""

NAMES = frozenset(tool.name for tool, _ in CASES)


def scenes(chance: random.Random) -> list[tuple[list[Tool], Request]]:
    """Every question, with none to three of the other hand-written tools on offer beside the right one."""
    found = []
    for index, (wanted, questions) in enumerate(CASES):
        others = [other for other, _ in CASES if other is not wanted]
        for number, (question, arguments) in enumerate(questions):
            tools = [wanted, *chance.sample(others, (2 * index + number) % 4)]
            chance.shuffle(tools)
            found.append((tools, Request(tool=wanted, question=question, arguments=arguments)))
    return found

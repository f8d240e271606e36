"""Plain conversations: greetings, facts, sums, what a library function does, and short Python answers.

Owns questions and answers without any tool. The standard library's documentation strings and the functions
of the corpus are read here; invented tools and their calls are elsewhere.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import random
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from families import CAPITALS

Chance = random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question, its answer, and the thought between them."""

    question: str
    answer: str
    thought: str = "I can answer this directly."


SMALL_TALK = (
    ("Hello!|Hello|Hi|Hi there.|Hi!|Good morning.|Hey|Good evening!", "Hello! How can I help you?"),
    (
        "Who are you?|What are you?|What is your name?|Tell me about yourself.|Introduce yourself.",
        "I am Pico, a tiny mixture-of-experts language model.",
    ),
    ("Thanks!|Thank you.|Thank you very much.|Thanks a lot!|Great, thanks.", "You are welcome!"),
    (
        "What can you do?|How can you help me?|What do you know?|Help",
        "I can write short Python code, explain functions and call tools.",
    ),
    ("Bye|Goodbye|See you later.|Bye!|Good night.", "Goodbye!"),
    ("How are you?|How is it going?|How are you today?", "I am fine, thank you. How can I help you?"),
    ("Ok|Okay.|I see.|Good.|Nice!", "Is there anything else that I can do for you?"),
    ("Are you a human?|Are you a person?|Are you real?", "No, I am a small language model called Pico."),
    (
        "Tell me a joke.|Do you know a joke?",
        "Why do programmers mix up Halloween and Christmas? Because oct 31 is dec 25.",
    ),
)

FACTS = dict(
    pair.split("=")
    for pair in (
        "color of grass=green|color of the sky=blue|color of snow=white|color of coal=black|"
        "opposite of hot=cold|"
        "opposite of big=small|opposite of up=down|opposite of fast=slow|opposite of open=closed|"
        "opposite of left=right|opposite of day=night|opposite of true=false|first day of the week=Monday|"
        "last month of the year=December|first month of the year=January|largest ocean=the Pacific Ocean|"
        "largest planet=Jupiter|chemical symbol for water=H2O|square root of 81=9|square root of 144=12|"
        "number of days in a week=7|number of months in a year=12|number of hours in a day=24|"
        "number of minutes in an hour=60|language used by Django=Python|creator of Python=Guido van Rossum|"
        "number of bits in a byte=8|boiling point of water=100 degrees Celsius|star closest to Earth=the Sun"
    ).split("|")
)

TASKS = (
    ("reverse", "reverses a string|reverses a string s", "def reverse(s):\n    return s[::-1]"),
    ("add", "adds two numbers|returns the sum of two numbers", "def add(a, b):\n    return a + b"),
    (
        "factorial",
        "computes the factorial of n|returns n factorial",
        "def factorial(n):\n    result = 1\n"
        "    for i in range(2, n + 1):\n        result *= i\n    return result",
    ),
    (
        "fibonacci",
        "returns the n-th Fibonacci number|computes Fibonacci numbers",
        "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
    ),
    (
        "is_prime",
        "checks if a number is prime|tests whether n is a prime number",
        "def is_prime(n):\n    if n < 2:\n        return False\n    for i in range(2, int(n ** 0.5) + 1):\n"
        "        if n % i == 0:\n            return False\n    return True",
    ),
    (
        "gcd",
        "computes the greatest common divisor|returns the gcd of a and b",
        "def gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a",
    ),
    (
        "is_even",
        "checks if a number is even|tells whether n is even",
        "def is_even(n):\n    return n % 2 == 0",
    ),
    (
        "is_palindrome",
        "checks if a string is a palindrome|tests for palindromes",
        "def is_palindrome(s):\n    return s == s[::-1]",
    ),
    (
        "maximum",
        "returns the largest item of a list|finds the maximum of a list",
        "def maximum(items):\n    best = items[0]\n    for item in items:\n        if item > best:\n"
        "            best = item\n    return best",
    ),
    (
        "average",
        "computes the average of a list|returns the mean of some numbers",
        "def average(numbers):\n    return sum(numbers) / len(numbers)",
    ),
    (
        "count_words",
        "counts the words in a text|counts words",
        "def count_words(text):\n    return len(text.split())",
    ),
    (
        "count_vowels",
        "counts the vowels in a string|counts vowels",
        'def count_vowels(s):\n    return sum(c in "aeiou" for c in s.lower())',
    ),
    (
        "flatten",
        "flattens a list of lists|flattens a nested list",
        "def flatten(lists):\n    return [item for items in lists for item in items]",
    ),
    (
        "unique",
        "removes duplicates from a list|returns the unique items of a list",
        "def unique(items):\n    return list(dict.fromkeys(items))",
    ),
    (
        "read_lines",
        "reads all lines of a file|returns the lines of a file",
        "def read_lines(path):\n    with open(path) as f:\n        return f.read().splitlines()",
    ),
    (
        "load_json",
        "loads a JSON file|reads JSON from a file",
        "import json\n\n\ndef load_json(path):\n    with open(path) as f:\n        return json.load(f)",
    ),
    ("swap", "swaps two values|exchanges two values", "def swap(a, b):\n    return b, a"),
    ("square", "squares a number|returns the square of x", "def square(x):\n    return x * x"),
    (
        "celsius",
        "converts Fahrenheit to Celsius|converts a temperature to Celsius",
        "def celsius(fahrenheit):\n    return (fahrenheit - 32) * 5 / 9",
    ),
    (
        "clamp",
        "limits a value to a range|clamps a value between low and high",
        "def clamp(value, low, high):\n    return max(low, min(value, high))",
    ),
    ("hello", "prints hello world|says hello", 'def hello():\n    print("Hello, world!")'),
    (
        "chunks",
        "splits a list into chunks|yields chunks of a list",
        "def chunks(items, size):\n    for i in range(0, len(items), size):\n        yield items[i:i + size]",
    ),
    (
        "binary_search",
        "does a binary search|finds an item in a sorted list",
        "def binary_search(items, target):\n    low, high = 0, len(items) - 1\n    while low <= high:\n"
        "        mid = (low + high) // 2\n        if items[mid] == target:\n            return mid\n"
        "        if items[mid] < target:\n            low = mid + 1\n"
        "        else:\n            high = mid - 1\n"
        "    return -1",
    ),
    (
        "bubble_sort",
        "sorts a list with bubble sort|implements bubble sort",
        "def bubble_sort(items):\n    for i in range(len(items)):\n"
        "        for j in range(len(items) - 1 - i):\n"
        "            if items[j] > items[j + 1]:\n"
        "                items[j], items[j + 1] = items[j + 1], items[j]\n"
        "    return items",
    ),
)

MODULES = """
builtins os os.path shutil json re math random itertools functools collections string textwrap datetime
time calendar heapq bisect copy pathlib subprocess threading socket logging argparse csv pickle hashlib
base64 struct glob fnmatch tempfile statistics operator inspect ast types contextlib urllib.parse html
zipfile gzip io queue asyncio traceback warnings platform sys decimal fractions unicodedata difflib
pprint shlex signal select ssl email.utils configparser getpass locale
""".split()


def library() -> list[tuple[str, str]]:
    """(name, first sentence of its documentation) of the standard library's functions and classes."""
    found = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in inspect.getmembers(module):
            text = inspect.getdoc(value) if callable(value) and not name.startswith("_") else None
            paragraphs = [p for p in (text or "").split("\n\n") if not re.match(r"^[\w.]+\(.*", p)]
            if not paragraphs:
                continue
            first = re.sub(r"\s+", " ", paragraphs[0]).split(". ")[0].strip().rstrip(".")
            if 20 < len(first) < 150 and first.isascii():
                found.append((name if module_name == "builtins" else f"{module_name}.{name}", first))
    return sorted(set(found))


def functions(corpus: Path, chance: Chance, count: int) -> Iterator[tuple[str, str, str]]:
    """(name, first sentence, source) of short documented functions in the training text."""
    found = 0
    with corpus.open() as lines:
        for line in lines:
            document = json.loads(line)
            if document["kind"] != "code" or chance.random() < 0.5:
                continue
            tree = ast.parse(document["text"])
            source_lines = document["text"].split("\n")
            inner = [
                f for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body if chance.random() < 0.2
            ]
            for node in tree.body + inner:
                if not isinstance(node, ast.FunctionDef) or node.decorator_list or node.name[0] == "_":
                    continue
                documentation = ast.get_docstring(node)
                if not documentation or node.name.startswith("test"):
                    continue
                first = re.sub(r"\s+", " ", documentation.split("\n\n")[0]).strip().rstrip(".")
                source = textwrap.dedent("\n".join(source_lines[node.lineno - 1 : node.end_lineno]))
                if 20 < len(first) < 140 and 80 < len(source) < 800 and first.isascii() and "`" not in first:
                    yield node.name, first, source
                    found += 1
                    if found == count:
                        return


def fenced(code: str) -> str:
    """Code in a Python fence."""
    return f"```python\n{code}\n```"


def talk(chance: Chance, names: list[tuple[str, str]]) -> Exchange:
    """A short exchange that needs no code."""
    draw = chance.random()
    if draw < 0.3:
        questions, answer = chance.choice(SMALL_TALK)
        return Exchange(question=chance.choice(questions.split("|")), answer=answer)
    if draw < 0.6:
        name, text = chance.choice(names)
        forms = ("What does {} do?", "What is {} for?", "Explain {}.", "Tell me about {} in Python.")
        return Exchange(question=chance.choice(forms).format(name), answer=f"{text}.")
    if draw < 0.75:
        key, value = chance.choice(list(FACTS.items()))
        return Exchange(question=f"What is the {key}?", answer=f"The {key} is {value}.")
    if draw < 0.87:
        country, city = chance.choice(list(CAPITALS.items()))
        forms = ("What is the capital of {}?", "Which city is the capital of {}?", "Name the capital of {}.")
        return Exchange(
            question=chance.choice(forms).format(country), answer=f"The capital of {country} is {city}."
        )
    a, b = chance.randint(0, 30), chance.randint(0, 30)
    return Exchange(question=f"What is {a} + {b}?", answer=f"{a} + {b} = {a + b}.")


def task(chance: Chance) -> Exchange:
    """A small programming task with a written answer."""
    name, purposes, code = chance.choice(TASKS)
    purpose = chance.choice(purposes.split("|"))
    forms = (
        "Write a Python function that {1}.",
        "Write a function that {1}.",
        "I need a Python function that {1}.",
        "Write a Python function named {0} that {1}.",
        "How do I write a function that {1}?",
        "Show me a function that {1} in Python.",
        "Python function that {1}",
        "Write {0} in Python.",
        "Give me Python code that {1}.",
    )
    question = chance.choice(forms).format(name, purpose)
    return Exchange(question=question, answer=fenced(code), thought="The user wants a short Python function.")


def about_function(chance: Chance, name: str, first: str, source: str) -> Exchange:
    """Write or explain a function of the corpus."""
    draw = chance.random()
    if draw < 0.4:
        forms = (
            "Write a Python function that does this: {}.",
            "Write Python code: {}.",
            "I need a function. {}.",
        )
        question = chance.choice(forms).format(first)
    elif draw < 0.7:
        question = f"Write a Python function named {name}. {first}."
    else:
        forms = (
            "What does this function do?",
            "Explain this code.",
            "Describe this function in one sentence.",
        )
        bare = re.sub(r'[ru]?""".*?"""\n', "", source, count=1, flags=re.DOTALL)
        thought = "The user asks about Python code."
        return Exchange(
            question=f"{chance.choice(forms)}\n\n{fenced(bare)}", answer=f"{first}.", thought=thought
        )
    return Exchange(question=question, answer=fenced(source), thought="The user wants a Python function.")

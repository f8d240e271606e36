"""Build the text corpus from downloaded wheels, the standard library and Debian documentation packages.

Owns which files are taken, how they are cleaned and deduplicated, and the list of sources with their
licences. Knows nothing of tokens or of the model.

In:  BUILD/wheels/*.whl, BUILD/debs/*.deb with their contents under BUILD/x/NAME/ (fetch.py makes all
     three).
Out: BUILD/corpus/{train,valid,strange}.jsonl, a document a line: {"source", "path", "kind", "text"};
     sources.tsv.
"""

from __future__ import annotations

import argparse
import ast
import email
import hashlib
import json
import multiprocessing
import os
import random
import re
import sys
import sysconfig
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from licences import FOREIGN, debian_licence, package_licence

HERE = Path(__file__).parent
DEFAULT_CAP = 4_500_000
CAPS = {
    "stdlib": 14_000_000,
    "stdlib-test": 5_000_000,
    "transformers": 8_000_000,
    "homeassistant": 8_000_000,
    "sympy": 8_000_000,
    "scipy": 8_000_000,
    "pandas": 8_000_000,
    "scikit-learn": 8_000_000,
    "Django": 8_000_000,
    "SQLAlchemy": 8_000_000,
    "Twisted": 7_000_000,
    "numpy": 7_000_000,
    "matplotlib": 7_000_000,
    "jax": 6_000_000,
    "openai": 1_500_000,
    "boto": 3_000_000,
    "sglang": 4_000_000,
    "doc:python3.11-doc": 12_000_000,
    "doc:postgresql-doc-15": 6_000_000,
    "doc:python-django-doc": 6_000_000,
}
"""Bytes of text taken from a source at most, where it is not DEFAULT_CAP: no single project is to set the
tone.
"""

TEST_SHARE = 0.12
"""Of a package's cap, the part that its tests may fill."""

STRANGE = frozenset({"marshmallow", "structlog", "pypdf", "mistune", "tortoise-orm", "lifelines", "locust"})
"""Packages held out whole: text of authors and topics that the model never saw."""

READ_BY_HAND = {"python3.11-doc": "PSF-2.0"}
"""Debian packages with a free-form copyright file, read by a person: Python's documentation is under
PSF-2.0.
"""

SKIPPED_PATH = re.compile(
    r"(_pb2|_pb2_grpc|_version|/locales?/|lextab|parsetab|unicode_|/_?vendor(ed)?/|/extern(al)?s?/|/third_party/|"
    r"/migrations/|/testdata/|/data/|expatbuilder|encodings/|idnadata|uts46data|/emoji|/mappings?/|/alembic/versions/)"
)
TEST_PATH = re.compile(r"(^|/)(tests?|testing|unit|functional)/|(^|/)(test_[^/]*|conftest|[^/]*_test)\.py$")
DOC_PAGES = {"postgresql-doc-15", "python-django-doc", "python-scipy-doc"}
SKIPPED_DOC = re.compile(
    r"generated|/api/|reference/api|genindex|changelog|whatsnew/v0|auto_examples|_modules|release|bookindex"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One cleaned file."""

    source: str
    path: str
    kind: str
    text: str


def normalised(text: str) -> str:
    """Unix line ends, no tabs, no trailing blanks, no more than two empty lines in a row."""
    text = text.replace("\r\n", "\n").replace("\x0c", "").expandtabs(4).lstrip("\ufeff")
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def without_licence_header(text: str) -> str:
    """Drop the leading licence comment, which in thousands of files would be learnt by heart."""
    head = re.match(r"(#!.*\n)?(\s*#.*\n|\s*\n)+", text)
    if head and re.search(r"licen[sc]e|copyright", head.group(0), re.IGNORECASE):
        return text[head.end() :]
    return text


def readable(text: str) -> bool:
    """True for text that a person wrote: mostly ASCII, sane lines, not a table of numbers."""
    if not 200 < len(text) < 150_000 or text.count("\n") < 5:
        return False
    if len(text.encode()) / len(text) > 1.02:
        return False
    lines = text.split("\n")
    if max(map(len, lines)) > 1500 or len(text) / len(lines) > 110:
        return False
    digits = len(re.findall(r"\d", text)) / len(text)
    letters = len(re.findall(r"[A-Za-z]", text)) / len(text)
    return digits < 0.12 and letters > 0.40


class PageText(HTMLParser):
    """Plain text of an HTML documentation page."""

    SKIPPED = frozenset({"script", "style", "nav", "head", "footer", "svg"})
    BLOCKS = frozenset({"p", "div", "h1", "h2", "h3", "h4", "table", "dl", "ul", "ol"})

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0
        self.literal = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a block, a list item or a literal."""
        self.hidden += tag in self.SKIPPED
        self.literal += tag == "pre"
        if tag == "pre":
            self.parts.append("\n\n    ")
        elif tag in self.BLOCKS:
            self.parts.append("\n\n")
        else:
            self.parts.append({"li": "\n* ", "dt": "\n", "tr": "\n", "br": "\n", "dd": "\n  "}.get(tag, ""))

    def handle_endtag(self, tag: str) -> None:
        """Close what `handle_starttag` opened."""
        if tag in self.SKIPPED and self.hidden:
            self.hidden -= 1
        if tag == "pre" and self.literal:
            self.literal -= 1
            self.parts.append("\n\n")
        elif tag in ("h1", "h2", "h3", "h4"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep literals as they are; fold white space elsewhere."""
        if not self.hidden:
            self.parts.append(data.replace("\n", "\n    ") if self.literal else re.sub(r"\s+", " ", data))


def page_text(page: str) -> str:
    """The body of an HTML page as text, or '' where no body is found."""
    body = re.search(
        r'<(?:div class="(?:body|yui-b|sect1|chapter|refentry)"|main|article)[^>]*>', page, re.IGNORECASE
    )
    if not body:
        return ""
    parser = PageText()
    parser.feed(page[body.start() :])
    text = "".join(parser.parts).translate(
        str.maketrans({"¶": "", "“": '"', "”": '"', "’": "'", "\xa0": " "})
    )
    text = re.sub(r"\n\* \n+", "\n* ", re.sub(r"[ ]+\n", "\n", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def take(source: str, kind: str, files: list[tuple[str, object]]) -> list[Document]:
    """Clean the files of one source, tests last, until its cap is reached."""
    order = random.Random(source)
    order.shuffle(files)
    files.sort(key=lambda item: bool(TEST_PATH.search(item[0])) and source != "stdlib-test")
    cap, total, tests, kept = CAPS.get(source, DEFAULT_CAP), 0, 0, []
    for path, read in files:
        is_test = bool(TEST_PATH.search(path)) and source != "stdlib-test"
        if total > cap or (is_test and tests > TEST_SHARE * cap):
            break
        try:
            raw = read()
        except (UnicodeDecodeError, OSError):
            continue
        if FOREIGN.search(raw[:3000]):
            continue
        text = normalised(without_licence_header(normalised(raw)))
        if not readable(text):
            continue
        if kind == "code":
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
        total += len(text)
        tests += is_test * len(text)
        kept.append(Document(source=source, path=path[-100:], kind=kind, text=text))
    return kept


def from_wheel(path: str) -> tuple[tuple[str, str, str | None], list[Document]]:
    """((name, version, licence or None), documents) of one wheel."""
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        record = next(n for n in names if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        metadata = email.message_from_string(wheel.read(record).decode("utf8", "replace"))
        name, licence = metadata["Name"], package_licence(metadata)
        if licence is None:
            return (name, metadata["Version"], None), []
        files = [
            (n, lambda n=n: wheel.read(n).decode("utf8"))
            for n in names
            if n.endswith(".py") and not SKIPPED_PATH.search("/" + n)
        ]
        documents = take(name, "code", files)
        readme = metadata.get_payload()
        if isinstance(readme, str) and readable(normalised(readme)) and not FOREIGN.search(readme):
            documents.append(Document(source=name, path="README", kind="doc", text=normalised(readme)))
    return (name, metadata["Version"], licence), documents


def from_standard_library(part: str) -> tuple[tuple[str, str, str | None], list[Document]]:
    """Documents of this interpreter's standard library; `part` is `stdlib` or `stdlib-test`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.parts and "lib2to3" not in p.parts
    ]
    wanted = part == "stdlib-test"
    files = [
        (str(p.relative_to(root)), lambda p=p: p.read_text(encoding="utf8"))
        for p in paths
        if bool({"test", "tests", "idle_test"} & set(p.relative_to(root).parts)) == wanted
        and not SKIPPED_PATH.search("/" + str(p.relative_to(root)))
    ]
    return (part, sys.version.split()[0], "PSF-2.0"), take(part, "code", files)


def from_debian(directory: str) -> tuple[tuple[str, str, str | None], list[Document]]:
    """Documents of one unpacked Debian documentation package."""
    root = Path(directory)
    name = root.name
    version = next(root.parent.parent.glob(f"debs/{name}_*.deb")).name.split("_")[1].replace("%3a", ":")
    texts = [p.read_text(encoding="utf8", errors="replace") for p in root.glob("usr/share/doc/*/copyright")]
    licence = READ_BY_HAND.get(name) or (debian_licence(texts[0]) if texts else None)
    if licence is None:
        return (f"doc:{name}", version, None), []
    pages = [
        p for p in sorted(root.rglob("*")) if p.is_file() and not SKIPPED_DOC.search(str(p.relative_to(root)))
    ]
    if name in DOC_PAGES:
        files = [
            (str(p), lambda p=p: page_text(p.read_text(encoding="utf8")))
            for p in pages
            if p.suffix == ".html"
        ]
    else:
        files = [
            (str(p), lambda p=p: p.read_text(encoding="utf8"))
            for p in pages
            if re.search(r"\.rst(\.txt)?$|/_sources/.*\.txt$", str(p))
        ]
    return (f"doc:{name}", version, licence), take(f"doc:{name}", "doc", files)


def gather(job: tuple[str, str]) -> tuple[tuple[str, str, str | None], list[Document]]:
    """Run one job in a worker process."""
    kind, argument = job
    return {"wheel": from_wheel, "stdlib": from_standard_library, "debian": from_debian}[kind](argument)


def distinct(documents: Iterator[Document]) -> Iterator[Document]:
    """Leave out exact copies, and documents of whose long lines more than half were seen before."""
    texts: set[bytes] = set()
    lines: set[int] = set()
    for document in documents:
        digest = hashlib.sha1(document.text.encode()).digest()
        if digest in texts:
            continue
        texts.add(digest)
        marks = [hash(line.strip()) for line in document.text.split("\n") if len(line.strip()) > 25]
        known = sum(mark in lines for mark in marks)
        lines.update(marks)
        if known <= 0.5 * len(marks):
            yield document


def part_of(document: Document) -> str:
    """Which file a document belongs to; one file in 200 is held out, and the packages in STRANGE whole."""
    if document.source in STRANGE:
        return "strange"
    number = int(hashlib.md5((document.source + document.path).encode()).hexdigest(), 16)
    return "valid" if number % 200 == 0 else "train"


def main() -> None:
    """Build the corpus."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--build", type=Path, default=Path("build"))
    arguments.add_argument("--processes", type=int, default=os.cpu_count())
    options = arguments.parse_args()
    jobs = [("stdlib", "stdlib"), ("stdlib", "stdlib-test")]
    jobs += [("debian", str(path)) for path in sorted((options.build / "x").iterdir())]
    jobs += [("wheel", str(path)) for path in sorted((options.build / "wheels").glob("*.whl"))]
    with multiprocessing.Pool(options.processes) as pool:
        gathered = pool.map(gather, jobs, chunksize=1)
    left_out = sorted(f"{name} {version}" for (name, version, licence), _ in gathered if licence is None)
    print("left out, no accepted licence in the metadata:", ", ".join(left_out))
    facts = {head[0]: head for head, _ in gathered}
    counts: dict[str, list[int]] = {}
    totals: dict[tuple[str, str], int] = {}
    documents = list(distinct(document for _, several in gathered for document in several))
    random.Random(1).shuffle(documents)
    (options.build / "corpus").mkdir(exist_ok=True)
    outs = {
        part: (options.build / f"corpus/{part}.jsonl").open("w") for part in ("train", "valid", "strange")
    }
    for document in documents:
        size, part = len(document.text.encode()), part_of(document)
        fields = {name: getattr(document, name) for name in ("source", "path", "kind", "text")}
        outs[part].write(json.dumps(fields) + "\n")
        count = counts.setdefault(document.source, [0, 0])
        count[0] += 1
        count[1] += size
        totals[part, document.kind] = totals.get((part, document.kind), 0) + size
    for out in outs.values():
        out.close()
    with (HERE / "sources.tsv").open("w") as table:
        table.write("source\tversion\tlicence\tfiles\tbytes\n")
        for source, (files, size) in sorted(counts.items(), key=lambda item: -item[1][1]):
            table.write(f"{source}\t{facts[source][1]}\t{facts[source][2]}\t{files}\t{size}\n")
    print({f"{part} {kind}": size for (part, kind), size in sorted(totals.items())})


if __name__ == "__main__":
    main()

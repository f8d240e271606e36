"""Which licences the corpus accepts, and how a package's own metadata is read.

Owns the allow list. Refuses to guess: a package whose metadata names a licence that is not in the tables
below, or names none, is left out. Nothing here opens the network.
"""

from __future__ import annotations

import re
from email.message import Message

PERMISSIVE = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "PostgreSQL",
        "PSF-2.0",
        "Zlib",
    }
)
"""SPDX identifiers that the corpus accepts."""

CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Python Software Foundation License": "PSF-2.0",
    "zlib/libpng License": "Zlib",
}
"""Trove classifiers (their last part) that name one licence. `BSD License` stands for a BSD licence of 2 or
3 clauses.
"""

FREE_TEXT = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "BSD-3-Clause": "BSD-3-Clause",
    "MIT": "MIT",
}
"""Whole values of the old free-text `License` field, used only where a package has no classifier."""

DEBIAN = {
    "apache": "Apache-2.0",
    "apache-2": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "expat": "MIT",
    "mit": "MIT",
    "postgresql": "PostgreSQL",
    "psf-2": "PSF-2.0",
}
"""Short names of Debian's machine-readable copyright files, lower case."""

FOREIGN = re.compile(
    r"GNU\s+(Lesser\s+|Library\s+|Affero\s+)?General\s+Public|\b[AL]?GPL(v?[23])?\b|Mozilla\s+Public|"
    r"Creative\s+Commons|\bCC[- ]BY\b|Stack\s?Overflow",
    re.IGNORECASE,
)
"""A file that names one of these in its first kilobytes is left out, whatever its package says."""


def spdx_allowed(expression: str) -> bool:
    """True if an SPDX expression can be met with accepted licences alone (AND: all parts; OR: one part)."""
    alternatives = re.split(r"\s+OR\s+", expression.replace("(", " ").replace(")", " ").strip())
    return any(
        all(part.strip() in PERMISSIVE for part in re.split(r"\s+AND\s+", alternative))
        for alternative in alternatives
    )


def package_licence(metadata: Message) -> str | None:
    """The licence of a wheel as an SPDX expression, or None where it cannot be established.

    Order: `License-Expression` (PEP 639), then classifiers (every one has to be known), then the free-text
    field.
    """
    expression = metadata.get("License-Expression")
    if expression:
        return expression if spdx_allowed(expression) else None
    named = [
        line.split("::")[-1].strip() for line in metadata.get_all("Classifier") or [] if line[:7] == "License"
    ]
    if named:
        known = {CLASSIFIERS.get(name) for name in named}
        return None if None in known else " OR ".join(sorted(str(name) for name in known))
    return FREE_TEXT.get((metadata.get("License") or "").strip())


def debian_licence(copyright_text: str) -> str | None:
    """The licence of a Debian documentation package, or None where it cannot be established.

    Reads the machine-readable format. What counts is the stanza `Files: *` and every stanza for a path with
    `doc` in it; all of them have to be accepted. Packaging (`debian/*`) does not reach the corpus.
    """
    found: set[str] = set()
    if "copyright-format/1.0" not in copyright_text:
        return None
    for stanza in re.split(r"\n\s*\n", copyright_text):
        fields = dict(re.findall(r"^(Files|License):[ \t]*((?:.*)(?:\n[ \t]+.*)*)", stanza, re.MULTILINE))
        if "Files" not in fields:
            continue
        paths = fields["Files"].split()
        if "*" not in paths and not any("doc" in path for path in paths):
            continue
        for name in re.split(r"\+|/|,|\s+and\s+", fields.get("License", "").split("\n")[0].strip()):
            known = DEBIAN.get(name.strip().lower())
            if known is None:
                return None
            found.add(known)
    return " AND ".join(sorted(found)) or None

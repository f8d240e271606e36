"""Owns the answer of a request without tools, or of a model that knows none: all of it is text."""

from __future__ import annotations

from mach_server.answer.dialect import Dialect


class PlainText(Dialect):
    """Gives text out as it comes."""

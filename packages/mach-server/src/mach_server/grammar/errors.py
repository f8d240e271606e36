"""Owns what can go wrong between a request for a certain form and a grammar for it.

ServerError (mach_server.errors)
├── GrammarRefusedError (also BadRequestError)   400: the form cannot be enforced
├── GrammarBusyError (also UnavailableError)     503: too many grammars are being compiled
└── GrammarDeadEndError                          the grammar allows no token: generation cannot go on
"""

from __future__ import annotations

from mach_server.errors import BadRequestError, ServerError, UnavailableError


class GrammarRefusedError(BadRequestError):
    """The form cannot be enforced; `param` names the request's field.

    Attributes:
        keyword: the JSON schema keyword at fault, or None.
    """

    def __init__(self, message: str, *, param: str, keyword: str | None = None) -> None:
        code = "invalid_grammar" if keyword is None else "unsupported_schema"
        super().__init__(message, param=param, code=code)
        self.keyword = keyword


class GrammarBusyError(UnavailableError):
    """Too many grammars are being compiled; another attempt later makes sense."""


class GrammarDeadEndError(ServerError):
    """The grammar allows no token, or was given one that it does not allow."""

"""Owns the bounded, checked reading of a checkpoint's JSON files and of the values in them.

It knows types and ranges, and no architecture: which fields exist is the adapters' business.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from mach.errors import CheckpointNotFoundError, ConfigError

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 16 << 20
_MISSING: Any = object()


def config_path(path: str | os.PathLike[str]) -> str:
    """`path` itself, or the config.json in it if `path` is a directory."""
    path = os.fspath(path)
    return os.path.join(path, CONFIG_NAME) if os.path.isdir(path) else path


def read_config(path: str | os.PathLike[str]) -> ConfigFields:
    """The fields of a config.json, given as the file or the directory that holds it.

    Raises:
        CheckpointNotFoundError: there is no such file.
        ConfigError: it is unreadable, too large, or not one JSON object in UTF-8 with unique keys.
    """
    path = config_path(path)
    return ConfigFields(read_json_object(path, MAX_CONFIG_BYTES), path)


def read_json_object(path: str, max_bytes: int) -> dict[str, Any]:
    """The JSON object that makes up the regular file `path` of at most `max_bytes` bytes.

    Raises:
        CheckpointNotFoundError: there is no such file.
        ConfigError: see `read_config`.
    """
    try:
        # A FIFO would block in open() for ever: look before opening.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file", path=path)
        with open(path, "rb") as handle:
            raw = handle.read(max_bytes + 1)
    except FileNotFoundError:
        raise CheckpointNotFoundError(
            f"{path}: no such file; name a directory that holds a {CONFIG_NAME}", path=path
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason})", path=path) from error
    return parse_json_object(raw, path, max_bytes)


def parse_json_object(raw: bytes, path: str, max_bytes: int) -> dict[str, Any]:
    """The JSON object in `raw`; `path` is for messages.

    Raises:
        ConfigError: more than `max_bytes`, not UTF-8, not JSON, nested too deeply, a key given twice, or
            not an object.
    """
    if len(raw) > max_bytes:
        raise ConfigError(f"{path}: larger than {max_bytes} bytes, which no such file is", path=path)
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); fetch it again", path=path) from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a configuration", path=path) from None
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error} is given twice", path=path, field=str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); fetch it again", path=path) from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds a JSON {_kind(document)}, not an object", path=path)
    return document


class ConfigFields:
    """One JSON object of a configuration, read with types and ranges checked.

    Every refusal is a ConfigError naming file and field. Where a method takes several names, the first that
    is present and not null counts, because families and their versions spell one thing differently.
    """

    __slots__ = ("path", "prefix", "values")

    def __init__(self, values: dict[str, Any], path: str, prefix: str = "") -> None:
        self.values = values
        self.path = path
        self.prefix = prefix

    def error(self, name: str, problem: str) -> ConfigError:
        """The ConfigError to raise about field `name`."""
        field = self.prefix + name
        return ConfigError(f"{self.path}: {field} {problem}", path=self.path, field=field)

    def find(self, *names: str) -> tuple[str, Any]:
        """The first of `names` that is present and not null, with its value; (`names[0]`, None) without."""
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        return names[0], None

    def integer(self, *names: str, low: int, high: int, default: int | None = None) -> int:
        """An integer in [low, high]; `default` if the field is absent, which without default is an error."""
        name, value = self.find(*names)
        if value is None:
            if default is not None:
                return default
            raise self.error(name, f"is missing; expected an integer from {low} to {high}")
        if type(value) is not int:
            raise self.error(name, f"is a JSON {_kind(value)}, expected an integer")
        if not low <= value <= high:
            shown = value if -(10**18) < value < 10**18 else "far"
            raise self.error(name, f"is {shown}, outside {low} to {high}")
        return value

    def number(self, name: str, *, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]; `default` if the field is absent: without one that is an error."""
        value = self.values.get(name)
        if value is None:
            if default is not None:
                return default
            raise self.error(name, f"is missing; expected a number from {low:g} to {high:g}")
        if type(value) not in (int, float):
            raise self.error(name, f"is a JSON {_kind(value)}, expected a number")
        if not low <= value <= high:  # before converting: a huge integer has no float
            raise self.error(name, f"is outside {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """A boolean; `default` if the field is absent."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(name, f"is a JSON {_kind(value)}, expected true or false")
        return value

    def text(self, name: str, default: str = _MISSING) -> str:
        """A string; `default` if the field is absent, which without default is an error."""
        value = self.values.get(name)
        if value is None:
            if default is not _MISSING:
                return default
            raise self.error(name, "is missing; expected a string")
        if type(value) is not str:
            raise self.error(name, f"is a JSON {_kind(value)}, expected a string")
        return value

    def sequence(self, name: str, max_length: int) -> list[Any] | None:
        """A list of at most `max_length` items, or None if the field is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not list:
            raise self.error(name, f"is a JSON {_kind(value)}, expected a list")
        if len(value) > max_length:
            raise self.error(name, f"has {len(value)} items, more than {max_length}")
        return value

    def integers(self, name: str, low: int, high: int, max_length: int) -> tuple[int, ...] | None:
        """A list of integers in [low, high], or None if the field is absent."""
        items = self.sequence(name, max_length)
        if items is None:
            return None
        if any(type(item) is not int or not low <= item <= high for item in items):
            raise self.error(name, f"must hold integers from {low} to {high}")
        return tuple(items)

    def texts(self, name: str, max_length: int) -> tuple[str, ...] | None:
        """A list of strings, or None if the field is absent."""
        items = self.sequence(name, max_length)
        if items is None:
            return None
        if any(type(item) is not str for item in items):
            raise self.error(name, "must hold strings")
        return tuple(items)

    def object(self, name: str) -> ConfigFields | None:
        """A nested object, or None if the field is absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.error(name, f"is a JSON {_kind(value)}, expected an object")
        return ConfigFields(value, self.path, f"{self.prefix}{name}.")


class _DuplicateKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(repr(key[:100]))
            seen.add(key)
    return result


def _kind(value: Any) -> str:
    names = {str: "string", int: "number", float: "number", bool: "boolean", list: "list", dict: "object"}
    return names.get(type(value), "null")

"""Plain tables to dataclasses: known keys only, each value of its declared type."""

import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from inspect import get_annotations
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from peft import PeftConfig

from medqua.core.errors import ConfigError

T = TypeVar("T")

NOT_IN_RECIPES = frozenset({"target_modules", "modules_to_save", "auto_mapping"})
"""Fields of an adapter's config that are written by the tuner."""


class Raw(str):
    """Text from a command line, to be read as whatever type its key has."""


def build(
    kind: type[T],
    table: Mapping[str, Any],
    *,
    prefix: str = "",
    sections: Mapping[str, type] | None = None,
) -> T:
    """Build a dataclass from a table.

    Args:
        kind: The dataclass.
        table: Its values by name; nested dataclasses are nested tables.
        prefix: Dotted key of the table, for errors.
        sections: Types of fields whose declared type is not the one to build.

    Raises:
        ConfigError: An unknown key (the nearest known one is named), a value of another type, or
            whatever the dataclass itself refuses.
    """
    hints = {**annotations_of(kind), **dict(sections or {})}
    known = field_names(kind)
    for key in table:
        if key not in known:
            candidates = [prefix + name for name in known] + _deeper(kind, prefix, hints)
            near = get_close_matches(prefix + key, candidates, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix + key!r}: {hint}")
    values = {}
    for name in known:
        dotted = prefix + name
        if is_dataclass(hints[name]) and (name in table or name in (sections or {})):
            inner = table.get(name, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{dotted} = {inner!r}: it is a section, set {dotted}.KEY")
            values[name] = build(hints[name], inner, prefix=f"{dotted}.")
        elif name in table:
            values[name] = convert(table[name], hints[name], dotted)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{prefix.rstrip('.') or 'recipe'}: {error}") from error


def field_names(kind: type) -> list[str]:
    """Names of the fields that a recipe may set."""
    names = [field.name for field in fields(kind) if field.init]
    if issubclass(kind, PeftConfig):  # what PEFT itself keeps there is no part of a recipe
        inherited = {field.name for field in fields(PeftConfig)}
        return [name for name in names if name not in inherited | NOT_IN_RECIPES]
    return names


def as_plain(value: Any) -> Any:
    """A dataclass or value as JSON and TOML have it."""
    if is_dataclass(value) and not isinstance(value, type):
        plain = asdict(value)
        return {name: as_plain(plain[name]) for name in field_names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    return value


def convert(value: Any, kind: Any, key: str) -> Any:
    """A value as its declared type.

    Args:
        value: From TOML, or `Raw` text.
        kind: Annotation: bool, int, float, str, Literal, tuples, dicts, and unions of them.
        key: Dotted key, for errors.

    Raises:
        ConfigError: The value is of another type.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, get_args(kind), key, kind)
    if kind is Any:
        return _bare(_parsed(value))
    if origin is Literal:
        return _choice(value, get_args(kind), key)
    if kind is type(None):
        if value is None or (isinstance(value, Raw) and value.lower() in ("none", "null", "")):
            return None
    elif kind is str:
        if isinstance(value, str):
            return str(_unquoted(value)) if isinstance(value, Raw) else value
    elif origin in (tuple, list, Sequence) or kind in (tuple, list):
        return _sequence(value, kind, key)
    elif origin is dict or kind is dict:
        parsed = _parsed(value)
        if isinstance(parsed, Mapping):
            inner = get_args(kind)[1] if get_args(kind) else Any
            return {
                str(name): convert(item, inner, f"{key}.{name}") for name, item in parsed.items()
            }
    else:
        parsed = _parsed(value)
        if kind is float and isinstance(parsed, int) and not isinstance(parsed, bool):
            return float(parsed)
        if isinstance(parsed, kind) and (kind is bool or not isinstance(parsed, bool)):
            return parsed
    raise ConfigError(f"{key} = {_shown(value)}: needed {_words(kind)}")


def annotations_of(kind: type) -> dict[str, Any]:
    """Declared types; PEFT's configs are closed to `typing.get_type_hints`."""
    result: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        result |= get_annotations(base)
    return result


def _deeper(kind: type, prefix: str, hints: Mapping[str, Any]) -> list[str]:
    """Keys one level down, so that a forgotten section is found too."""
    return [
        f"{prefix}{name}.{inner}"
        for name in field_names(kind)
        if is_dataclass(hints[name]) and isinstance(hints[name], type)
        for inner in field_names(hints[name])
    ]


def _first_that_fits(value: Any, kinds: Sequence[Any], key: str, whole: Any) -> Any:
    ordered = sorted(kinds, key=lambda kind: (kind is not type(None), kind is str))
    for kind in ordered:
        try:
            return convert(value, kind, key)
        except ConfigError:
            continue
    raise ConfigError(f"{key} = {_shown(value)}: needed {_words(whole)}")


def _choice(value: Any, choices: Sequence[Any], key: str) -> Any:
    candidates = (value, _parsed(value), _unquoted(value))
    for choice in choices:
        if any(type(choice) is type(c) and choice == c for c in map(_bare, candidates)):
            return choice
    near = get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{key} = {_shown(value)}: needed one of {', '.join(map(str, choices))}{hint}"
    )


def _sequence(value: Any, kind: Any, key: str) -> tuple[Any, ...]:
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    if isinstance(value, Raw):
        parsed = _parsed(value)
        if not isinstance(parsed, list):
            parsed = [Raw(part.strip()) for part in value.split(",") if part.strip()]
        value = parsed
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key} = {_shown(value)}: needed {_words(kind)}")
    if (
        get_origin(kind) is tuple
        and Ellipsis not in get_args(kind)
        and len(arguments) != len(value)
    ):
        raise ConfigError(f"{key} = {_shown(value)}: needed {len(arguments)} values")
    inner = arguments if len(arguments) > 1 else (arguments or [Any]) * len(value)
    return tuple(convert(item, one, key) for item, one in zip(value, inner, strict=True))


def _parsed(value: Any) -> Any:
    """Raw text as the TOML value that it spells, or as it is."""
    if not isinstance(value, Raw):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return {"True": True, "False": False}.get(value, value)


def _unquoted(value: Any) -> Any:
    if isinstance(value, Raw) and len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _bare(value: Any) -> Any:
    return str(value) if isinstance(value, Raw) else value


def _shown(value: Any) -> str:
    return repr(_bare(value))


def _words(kind: Any) -> str:
    """A type in words."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    if kind in names:
        return names[kind]
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if kind is type(None):
        return "none"
    if get_origin(kind) in (tuple, list, Sequence):
        inner = [one for one in get_args(kind) if one is not Ellipsis]
        return f"a list of {_words(inner[0])}s" if inner else "a list"
    return "a table"


def at_least(key: str, value: int, least: int) -> None:
    """Refuse a number below the least that makes sense.

    Raises:
        ConfigError: `value` is below `least`.
    """
    if value < least:
        raise ConfigError(f"{key} = {value}: needed a whole number of at least {least}")

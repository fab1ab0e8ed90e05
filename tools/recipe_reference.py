"""Write `docs/recipes.md`: every key of a recipe, from the dataclasses that read it.

python tools/recipe_reference.py           # write the page
python tools/recipe_reference.py --check   # status 1 if the page is not up to date
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from medqua.train.data.sections import DATA_KINDS, DataSection
from medqua.train.recipe import SECTIONS
from medqua.train.typed import annotations_of, field_names

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"

HEAD = """# Recipe reference

Every key of a recipe, written by `tools/recipe_reference.py` from the dataclasses that read it. A
value is set in the TOML file or by `key=value` on the command line: `optim.epochs=5`,
`data.views=AP,PA`, `run.trackers=[]`. See [training](training.md) for what to do with them.
"""


def page() -> str:
    """The page, as Markdown."""
    parts = [HEAD, "## `data`, of every kind", "", *_table(DataSection, "data")]
    for name, kind in DATA_KINDS.items():
        parts += [f'## `data`, kind = "{name}"', "", _first_line(kind), ""]
        parts += _table(kind, "data", without=set(field_names(DataSection)))
    for name, kind in SECTIONS.items():
        parts += [f"## `{name}`", "", _first_line(kind), "", *_table(kind, name)]
    return "\n".join(parts).rstrip() + "\n"


def _table(kind: type, prefix: str, without: set[str] = frozenset()) -> list[str]:
    rows = [
        f"| `{key}` | {_type(hint)} | {_default(default)} | {text} |"
        for key, hint, default, text in _rows(kind, prefix, without)
    ]
    return ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]


def _rows(kind: type, prefix: str, without: set[str]) -> Iterator[tuple[str, Any, Any, str]]:
    """Key, type, default and meaning; nested dataclasses by their own keys."""
    hints, texts = annotations_of(kind), _texts(kind)
    found = {field.name: field for field in fields(kind)}
    for name in field_names(kind):
        field, hint = found[name], hints[name]
        if name in without or name == "kind":
            continue
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _rows(hint, f"{prefix}.{name}", set())
            continue
        default = field.default
        if default is MISSING:
            default = field.default_factory() if field.default_factory is not MISSING else MISSING
        yield f"{prefix}.{name}", hint, default, texts[name]


def _texts(kind: type) -> dict[str, str]:
    """Field -> its docstring, on one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and _is_text(text):
                name = field.target.id  # type: ignore[union-attr]
                found[name] = " ".join(text.value.value.split()).replace("|", "\\|")
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _type(hint: Any) -> str:
    """A type as a reader of recipes knows it."""
    names = {bool: "true, false", int: "whole number", float: "number", str: "text"}
    if hint in names:
        return names[hint]
    if hint is type(None):
        return "none"
    origin, inner = get_origin(hint), [a for a in get_args(hint) if a is not Ellipsis]
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(one) for one in inner)
    if origin in (tuple, list):
        return f"list of: {_type(inner[0])}" if inner else "list"
    if origin is dict or hint is dict:
        return "table"
    return re.sub(r".*\.", "", str(hint)).strip("'>")


def _default(value: Any) -> str:
    if value is MISSING:
        return "needed"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", (), [], {}) and not isinstance(value, int | float):
        return "empty"
    if value is None:
        return "none"
    if isinstance(value, tuple | list):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text("utf-8") != text:
            print(f"{PAGE.name} is not up to date: run python tools/recipe_reference.py")
            return 1
        return 0
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

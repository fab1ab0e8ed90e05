"""The bundle that ships with this package, for a first look; its card tells what it is worth."""

import re
from collections.abc import Sequence
from pathlib import Path

from medqua.core.errors import ConfigError

DEMO = Path(__file__).with_name("demo_bundle")
"""Folder of the demo bundle: `tiny-cxr` with a trained adapter. It has seen phantoms only."""

_MODELS = ("bundle.json", "export.json")
_SETTING = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def model_and_files(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """Part the model that leads a command line from the files that follow it.

    Args:
        paths: Files, perhaps behind a folder written by training or by `serve:export`.

    Returns:
        That folder, or `DEMO` where none leads; and the files.

    Raises:
        ConfigError: No file is named, or the first path leads nowhere.
    """
    leads = bool(paths) and any((paths[0] / name).is_file() for name in _MODELS)
    model, files = (paths[0], list(paths[1:])) if leads else (DEMO, list(paths))
    if not files:
        raise ConfigError("no file to read: name DICOM, JPG or PNG files, or folders of them")
    if not leads and not files[0].exists():
        raise ConfigError(
            f"{files[0]} is not there: name a folder with bundle.json or export.json first, or "
            "only files, to read them with the demo bundle"
        )
    return model, files


def model_and_settings(words: Sequence[str], paths: int) -> tuple[Path, list[Path], list[str]]:
    """Part a command line of `[BUNDLE] PATH... [SECTION.KEY=VALUE...]`.

    Args:
        words: As they were typed.
        paths: How many paths follow the model.

    Returns:
        The model, `DEMO` where none is named; the paths; the settings.

    Raises:
        ConfigError: Too few or too many paths.
    """
    settings = [word for word in words if _SETTING.match(word)]
    named = [Path(word) for word in words if not _SETTING.match(word)]
    if not paths <= len(named) <= paths + 1:
        what = "IN and OUT.parquet, and perhaps a bundle before them" if paths else "one bundle"
        raise ConfigError(f"{len(named)} paths are given, needed: {what}")
    return (named[0], named[1:], settings) if len(named) > paths else (DEMO, named, settings)

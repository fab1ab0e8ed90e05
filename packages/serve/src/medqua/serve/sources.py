"""Which files a command line's paths mean."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medqua.core.vision.raster import is_raster

SUFFIXES = (".dcm", ".dicom", ".jpg", ".jpeg", ".png")


def expand(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are given, and for a folder the images under it, sorted by path.

    A file in a folder is an image by its suffix, or without one by its first bytes; a file given
    by itself is always yielded, so that it ends in a result or a refusal. Links to folders are
    not followed, hidden files and folders not entered.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file() and _is_image(file):
                    yield file


def _is_image(file: Path) -> bool:
    """Tell whether a file in a folder is meant: DICOM, JPG or PNG."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or is_raster(head)

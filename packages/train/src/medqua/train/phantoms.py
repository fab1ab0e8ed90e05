"""The embedded data set: phantoms, generated once and kept in the user's cache."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from medqua.train.data.phantom import write_tree
from medqua.train.data.sections import PhantomSection
from medqua.train.processes import distributed

NOTICE = "PHANTOMS: synthetic images, not patients"
"""Said whenever they stand in for a data set."""

VERSION = 2
"""Raised whenever equal parameters would give other images or reports."""


def phantom_tree(section: PhantomSection, say: Callable[[str], None]) -> Path:
    """The folder of phantoms with these parameters, generated unless it is there.

    Rank 0 generates while the others wait. A folder appears whole or not at all.

    Args:
        section: Parameters.
        say: Told that these are phantoms, and where they are.

    Returns:
        A root in the layout of MIMIC-CXR-JPG.
    """
    key = sha256(json.dumps([VERSION, asdict(section)]).encode()).hexdigest()[:16]
    root = cache_folder() / f"phantoms-{section.patients}-{key}"
    say(f"{NOTICE}. Give data.root=FOLDER to train on MIMIC-CXR-JPG.")
    with distributed.main_first() as main:
        if main and not root.is_dir():
            say(f"Generating {section.patients:,} synthetic patients in {root}")
            generate(section, root)
    return root


def generate(section: PhantomSection, root: Path) -> None:
    """Write a tree, whole or not at all."""
    write_tree(
        root,
        patients=section.patients,
        seed=section.seed,
        size=section.size,
        dicom=section.dicom,
    )


def cache_folder() -> Path:
    """Where generated data sets are kept: `MEDQUA_CACHE`, or medqua in the user's cache."""
    own = os.environ.get("MEDQUA_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "medqua"

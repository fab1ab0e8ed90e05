"""Reports in the layout of MIMIC-CXR, by study, from a folder or the published archive.

    files/p10/p10000032/s50414267.txt       one free-text report a study

MIMIC-CXR 2.1.0 publishes them as `mimic-cxr-reports.zip`. Sections begin with a name in capitals
and a colon (FINDINGS:, IMPRESSION:, ...); many reports have only one of the two, some have neither
and state everything in a last paragraph without a name. Source: Johnson et al., Scientific Data 6,
317 (2019), and the data set's page on PhysioNet.
"""

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import polars as pl

from medqua.core.errors import DataError

ARCHIVE = "mimic-cxr-reports.zip"
"""Name of the published archive."""

HEADING = re.compile(r"(?m)^[ \t]*([A-Z][A-Z /&,()-]{2,60}):")
"""A section's name at the beginning of a line."""

NAMES = {
    "FINDINGS": "findings",
    "FINDING": "findings",
    "IMPRESSION": "impression",
    "CONCLUSION": "impression",
    "FINDINGS AND IMPRESSION": "findings",
    "FINDINGS/IMPRESSION": "findings",
    "IMPRESSIONS": "impression",
}
"""Names of sections that are read -> which of the two they are."""


def sections(text: str) -> dict[str, str]:
    """Split a report.

    Args:
        text: The file's text.

    Returns:
        `findings` and `impression`, those that are there and not empty, line breaks folded into
        spaces. A second section of the same name is appended.
    """
    heads = list(HEADING.finditer(text))
    found: dict[str, str] = {}
    for head, following in zip_longest(heads, heads[1:]):
        name = NAMES.get(" ".join(head[1].split()))
        body = " ".join(text[head.end() : following.start() if following else None].split())
        if name and body:
            found[name] = f"{found[name]} {body}" if name in found else body
    return found


def report_path(patient: str, study: str) -> str:
    """Where a study's report lies: `files/p10/p10000032/s50414267.txt`."""
    return f"files/p{patient[:2]}/p{patient}/s{study}.txt"


def read_reports(
    source: Path, rows: pl.DataFrame, wanted: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Read the reports of the studies of a manifest.

    Args:
        source: Folder that holds `files/`, an archive of it, or a folder that holds the archive.
        rows: Of a manifest, with `patient_id` and `study_id`.
        wanted: Sections to join, in this order: `findings`, `impression`. A report counts where it
            has one of them.

    Returns:
        Study -> text; and the studies whose report has none of these sections.

    Raises:
        DataError: A study has no report, the archive is damaged, or a report is no text.
    """
    studies = rows.select("patient_id", "study_id").unique(maintain_order=True)
    texts: dict[str, str] = {}
    without: list[str] = []
    with _opened(source) as read:
        for patient, study in studies.iter_rows():
            if study is None:
                raise DataError("the manifest names no studies: reports go by study")
            name = report_path(str(patient), str(study))
            try:
                text = read(name).decode("utf-8")
            except KeyError as error:
                raise DataError(
                    f"no report {name} in {source}: complete the download of {ARCHIVE}, or set "
                    "report.root to where it is"
                ) from error
            except (UnicodeDecodeError, OSError, zipfile.BadZipFile) as error:
                raise DataError(f"{name} in {source} cannot be read: download it again") from error
            parts = sections(text)
            joined = " ".join(parts[part] for part in wanted if part in parts)
            if joined:
                texts[str(study)] = joined
            else:
                without.append(str(study))
    return texts, without


class _Folder:
    """Reports that lie in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(name) from error


class _Archive:
    """Reports in a zip archive, with or without folders above `files/`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names: Mapping[str, str] = {
            str(PurePosixPath(*PurePosixPath(name).parts[-4:])): name
            for name in archive.namelist()
            if name.endswith(".txt")
        }

    def __call__(self, name: str) -> bytes:
        return self.archive.read(self.names[name])


@contextmanager
def _opened(source: Path) -> Iterator[_Folder | _Archive]:
    path = source / ARCHIVE if (source / ARCHIVE).is_file() else source
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield _Archive(archive)
    except FileNotFoundError as error:
        raise DataError(f"no reports at {path}: give a folder with files/, or {ARCHIVE}") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no zip archive: download {ARCHIVE} again") from error

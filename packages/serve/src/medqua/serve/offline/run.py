"""`serve:batch`: an archive's files to one table, at the full speed of the machine.

The way of a file is that of the service: decoded in a process that can be killed, read in
batches by workers that may be lost. What is done is in a journal, so that a run that ended in any
way goes on where it was.
"""

import asyncio
import time
import zipfile
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqua.core.errors import DataError, ImageError, MedQuaError
from medqua.core.vision.limits import read_bytes
from medqua.serve.inference.engine import Model
from medqua.serve.jobs.runner import PATIENCE
from medqua.serve.jobs.tables import parquet, tabulate, write_whole
from medqua.serve.offline.journal import Journal
from medqua.serve.processes.batcher import Priority
from medqua.serve.processes.clerk import Clerk, grounds_of, report_of
from medqua.serve.processes.decoding import decoding_limits
from medqua.serve.processes.reader import Answer, Reader, refused
from medqua.serve.settings import Settings
from medqua.serve.sources import expand
from medqua.serve.zip_archive import LimitError, Part, unpack

MANIFESTS = (".csv", ".parquet")
PATH_COLUMNS = ("path", "file", "image", "filename")


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    files: int
    """Rows of the table."""
    read: int
    """Those with findings."""
    resumed: int
    """Those that an earlier run had answered."""
    reports: int = 0
    """Files with a structured report; the same image twice has the same."""

    def told(self, sr: Path | None) -> str:
        """Say it in lines; `sr` is the folder of the reports, if there is one."""
        refused = self.files - self.read
        lines = [f"{self.read} read, {refused} refused, {self.resumed} by an earlier run"]
        if sr is not None:
            rest = self.read - self.reports
            lines.append(f"{self.reports} reports in {sr}, {rest} files were no DICOM")
        return "\n".join(lines)


async def run_batch(
    model: Path,
    source: Path,
    output: Path,
    settings: Settings,
    *,
    sr: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> Summary:
    """Answer all files of a source, and write one table of them.

    Args:
        model: Bundle or export.
        source: Folder, ZIP, one image, or a manifest: CSV or Parquet with a column of paths.
        output: Parquet file to write; it appears when it is complete.
        settings: Limits and batching.
        sr: Folder for a structured report of each DICOM file, named by its SOP instance UID;
            the table's column `report` says which is whose.
        progress: Told how many files are done, and how many have been found so far.

    Raises:
        DataError: The source is absent, or a manifest has no column of paths.
        ConfigError: A run of something else left its journal at this output.
        BundleError: The model cannot be opened.
    """
    check_paths(source, output)
    async with Reader.open(model, settings) as reader:
        reports: Reports | None = None
        journal = open_journal(output, source, sr, reader.model)
        if sr is not None:
            reports = Reports(sr, reader, Clerk(settings.batching.decoders), journal.began)
        try:
            resumed = len(journal.done)
            await _answer_all(reader, source, journal, reports, progress)
            summary = await asyncio.to_thread(write_table, journal, output, reader.model)
        except BaseException:
            journal.close()
            raise
        finally:
            if reports is not None:
                reports.clerk.close()
        journal.close(delete=True)
    return Summary(summary[0], summary[1], resumed, summary[2])


def check_paths(source: Path, output: Path) -> None:
    """Refuse a source that is not there and a table of another kind; make the table's folder.

    Raises:
        DataError: One of them is wrong.
    """
    if not source.exists():
        raise DataError(f"{source} is not there: give a folder, a ZIP or a manifest")
    if output.suffix.lower() != ".parquet":
        raise DataError(f"{output}: name the table with the suffix .parquet")
    output.parent.mkdir(parents=True, exist_ok=True)


def open_journal(output: Path, source: Path, sr: Path | None, model: Model) -> Journal:
    """Open the journal of a run, and make its folder of reports.

    Raises:
        ConfigError: A run of something else left its journal at this output.
    """
    run: dict[str, Any] = {
        "provenance": dict(model.provenance), "source": str(source.resolve())
    }  # fmt: skip
    if sr is not None:
        sr.mkdir(parents=True, exist_ok=True, mode=0o700)  # reports name patients
        run["sr"] = str(sr.resolve())
    return Journal(output.with_name(output.name + ".journal"), run)


@dataclass(frozen=True)
class Reports:
    """Writes structured reports into a folder, each whole or not at all."""

    folder: Path
    """Where they go."""
    reader: Reader
    """What answers the files."""
    clerk: Clerk
    """What writes the reports."""
    when: str
    """Time of their content, ISO 8601."""

    async def write(self, content: bytes, answer: Answer) -> str | None:
        """Write the report of a file.

        Returns:
            Its SOP instance UID; None for a file without findings, or that is no DICOM image.
        """
        if answer.status != 200:
            return None
        provenance = dict(self.reader.model.provenance)
        device = self.reader.settings.report.device
        try:
            grounds = await self.clerk.do(grounds_of, content, provenance, device, self.when)
        except ImageError:
            return None
        uid, report = await self.clerk.do(report_of, answer.to_dict(), grounds)
        await asyncio.to_thread(write_whole, self.folder / f"{uid}.dcm", report, mode=0o600)
        return uid


async def _answer_all(
    reader: Reader,
    source: Path,
    journal: Journal,
    reports: Reports | None,
    progress: Callable[[int, int], None],
) -> None:
    """Answer what is not in the journal, a few files at a time."""
    batching = reader.settings.batching
    window = asyncio.Semaphore(min(batching.max_queue, 2 * batching.max_batch_size))
    parts = _parts(source, reader.settings, journal.done)
    found = len(journal.done)
    seen: set[str] = set()

    async def one(part: Part) -> None:
        try:
            journal.add(await answer_part(reader, part, reports))
            progress(len(journal.done), found)
        finally:
            window.release()

    async with asyncio.TaskGroup() as group:
        while True:
            await window.acquire()
            part = await asyncio.to_thread(next, parts, None)
            if part is None:
                break
            if part.name in seen:
                window.release()
                continue
            seen.add(part.name)
            found += 1
            group.create_task(one(part))


async def answer_part(reader: Reader, part: Part, reports: Reports | None) -> dict[str, Any]:
    """Answer one file; plain JSON values, with the UID of its report where reports are written."""
    if part.content is None:
        answer = refused(part.name, 422, part.refusal or MedQuaError("no content"))
    else:
        answer = await _read(reader, part.name, part.content)
    told = answer.to_dict()
    if reports is not None:
        told["report"] = await reports.write(part.content or b"", answer)
    return told


async def _read(reader: Reader, name: str, content: bytes) -> Answer:
    await reader.batcher.wait_to_enter()
    return await reader.read(
        content,
        name=name,
        deadline=time.monotonic() + PATIENCE,
        priority=Priority.BULK,
        admitted=True,
    )


def _parts(source: Path, settings: Settings, done: Container[str]) -> Iterator[Part]:
    """Yield the files of a source that are not done."""
    for path in paths_of(source):
        yield from parts_of(path, settings, done)


def parts_of(path: Path, settings: Settings, done: Container[str]) -> Iterator[Part]:
    """Yield what is not done of a file, or of the files in a ZIP."""
    if path.suffix.lower() == ".zip":
        yield from _unzip(path, settings, done)
    elif (name := str(path)) not in done:
        try:
            yield Part(name, read_bytes(path, decoding_limits(settings.limits)))
        except ImageError as error:
            yield Part(name, None, error)


def _unzip(path: Path, settings: Settings, done: Container[str]) -> Iterator[Part]:
    try:
        content = read_bytes(path)
        for part in unpack(str(path), content, settings.limits):
            if part.name not in done:
                yield part
    except (ImageError, LimitError) as error:
        if str(path) not in done:
            yield Part(str(path), None, error)


def paths_of(source: Path) -> Iterator[Path]:
    """Yield the files that a source names; a folder's images, then its ZIPs."""
    if source.suffix.lower() in MANIFESTS and source.is_file():
        yield from _manifest(source)
        return
    yield from expand([source])
    if source.is_dir():
        yield from (p for p in sorted(source.rglob("*.zip")) if zipfile.is_zipfile(p))


def _manifest(file: Path) -> Iterator[Path]:
    """Yield the paths of a manifest, relative ones from its folder."""
    import polars as pl

    read = pl.read_csv if file.suffix.lower() == ".csv" else pl.read_parquet
    try:
        table = read(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} cannot be read as a table: {type(error).__name__}") from None
    known = {name.lower(): name for name in reversed(table.columns)}
    column = next((known[name] for name in PATH_COLUMNS if name in known), None)
    if column is None:
        raise DataError(
            f"{file} has columns {', '.join(table.columns[:20])}: needed is one of "
            f"{', '.join(PATH_COLUMNS)}, with paths of image files"
        )
    for path in table[column].cast(pl.String).drop_nulls():
        yield file.parent / path


def write_table(journal: Journal, output: Path, model: Model) -> tuple[int, int, int]:
    """Write the table of a journal.

    Returns:
        Its rows, those with findings, those with a report.
    """
    answers: list[Mapping[str, Any]] = list(journal.answers())
    write_whole(output, parquet(tabulate(answers, model.labels), model.provenance))
    read = sum(answer["findings"] is not None for answer in answers)
    return len(answers), read, sum(bool(answer.get("report")) for answer in answers)

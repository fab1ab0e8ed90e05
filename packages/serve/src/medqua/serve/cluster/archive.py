"""An archive's files on all machines of a cluster, to the table that one machine would write.

    source -> paths -> readers on the nodes -> answers -> journal beside the table -> table

Paths travel, not files: every node sees the same disk. The journal is written where the command
runs. A reader that is lost with its node has its files read again on another, and an answer counts
once: the first that the journal takes. The command itself, ended in any way, goes on where it was.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from medqua.core.errors import BundleError
from medqua.serve.cluster.joining import plain
from medqua.serve.inference.engine import Model
from medqua.serve.offline.journal import Journal
from medqua.serve.offline.run import (
    Reports,
    Summary,
    answer_part,
    check_paths,
    open_journal,
    parts_of,
    paths_of,
    write_table,
)
from medqua.serve.processes.clerk import Clerk
from medqua.serve.processes.reader import Reader
from medqua.serve.settings import Settings
from medqua.serve.zip_archive import Part

TASKS = 10_000
"""Most tasks that a run is cut into."""


def run_archive(
    model: Path,
    source: Path,
    output: Path,
    settings: Settings,
    *,
    readers: int = 1,
    sr: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> Summary:
    """Answer all files of a source on the cluster that this process has joined.

    Args:
        model: Bundle or export; at this path on every node.
        source: As in `run_batch`; at this path on every node.
        output: Parquet file to write; it appears when it is complete.
        settings: Limits and batching of each reader.
        readers: Most readers at a time, each with `batching.workers` cores.
        sr: Folder for a structured report of each DICOM file; at this path on every node.
        progress: Told how many files are done, and how many there are; a ZIP not yet read counts 1.

    Raises:
        DataError: The source is absent, or a manifest has no column of paths.
        ConfigError: A run of something else left its journal at this output.
        BundleError: The model cannot be opened, or differs between nodes.
    """
    check_paths(source, output)
    model, sr = model.resolve(), sr and sr.resolve()
    batching = settings.batching
    if not batching.threads:
        settings = replace(settings, batching=replace(batching, threads=1))
    document = plain(settings)
    describe = ray.remote(num_cpus=batching.workers)(_describe)
    described: Model = ray.get(describe.remote(model, document))
    journal = open_journal(output, source, sr, described)
    try:
        resumed = len(journal.done)
        items = list(_items(source, journal))
        if items:
            arguments = (
                model, document, sr, dict(described.provenance), Path.cwd(), journal.began
            )  # fmt: skip
            window = 2 * batching.max_batch_size
            answers = (
                ray.data.from_items(
                    [{"item": json.dumps(item)} for item in items],
                    override_num_blocks=min(TASKS, -(-len(items) // window)),
                )
                .map_batches(
                    ClusterReader,
                    fn_constructor_args=arguments,
                    batch_size=window,
                    num_cpus=batching.workers,
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=readers),
                )
                .iter_rows()
            )
            _keep(answers, journal, resumed + len(items), progress)
        summary = write_table(journal, output, described)
    except BaseException:
        journal.close()
        raise
    journal.close(delete=True)
    return Summary(summary[0], summary[1], resumed, summary[2])


class ClusterReader:
    """A reader in a process of its own on some node, with its decoders and workers beside it.

    Args:
        model: Bundle or export.
        document: Settings as plain values.
        sr: Folder for reports, or None.
        provenance: What the run's first node said of the model.
        start: Folder that relative paths start from, so that the table names files as they were.
        when: Time of the reports' content, ISO 8601.

    Raises:
        BundleError: The model here is another.
    """

    def __init__(
        self,
        model: Path,
        document: dict[str, Any],
        sr: Path | None,
        provenance: dict[str, Any],
        start: Path,
        when: str,
    ) -> None:
        os.chdir(start)
        self._settings = Settings.from_dict(document)
        self._loop = asyncio.new_event_loop()
        self._open = AsyncExitStack()
        opening = self._open.enter_async_context(Reader.open(model, self._settings))
        self._reader: Reader = self._loop.run_until_complete(opening)
        if dict(self._reader.model.provenance) != provenance:
            self.close()
            raise BundleError(
                f"{model} on this node is another model than on the first: put the same folder on "
                "all nodes"
            )
        self._reports: Reports | None = None
        if sr is not None:
            clerk = Clerk(self._settings.batching.decoders)
            self._reports = Reports(sr, self._reader, clerk, when)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Answer the files that a block of paths names."""
        items = [json.loads(item) for item in batch["item"]]
        answers = self._loop.run_until_complete(self._answer(items))
        return {"answer": [json.dumps(answer) for answer in answers]}

    def close(self) -> None:
        """End decoders and workers."""
        self._loop.run_until_complete(self._open.aclose())
        self._loop.close()

    async def _answer(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        batching = self._settings.batching
        window = asyncio.Semaphore(min(batching.max_queue, 2 * batching.max_batch_size))

        async def one(part: Part) -> dict[str, Any]:
            try:
                return await answer_part(self._reader, part, self._reports)
            finally:
                window.release()

        tasks: list[asyncio.Task[dict[str, Any]]] = []
        async with asyncio.TaskGroup() as group:
            for item in items:
                parts = parts_of(Path(item["path"]), self._settings, set(item["done"]))
                while True:
                    await window.acquire()
                    part = await asyncio.to_thread(next, parts, None)
                    if part is None:
                        window.release()
                        break
                    tasks.append(group.create_task(one(part)))
        return [task.result() for task in tasks]


def _describe(model: Path, document: dict[str, Any]) -> Model:
    """Open the model on a node, and return what it says of itself."""

    async def opened() -> Model:
        async with Reader.open(model, Settings.from_dict(document)) as reader:
            return reader.model

    return asyncio.run(opened())


def _items(source: Path, journal: Journal) -> Iterator[dict[str, Any]]:
    """Yield the paths of a source that are not done; of a ZIP, with its files that are."""
    seen: set[str] = set()
    for path in paths_of(source):
        name = str(path)
        if name in seen or name in journal.done:
            continue
        seen.add(name)
        inside = path.suffix.lower() == ".zip"
        done = [each for each in journal.done if each.startswith(f"{name}/")] if inside else []
        yield {"path": str(path), "done": done}


def _keep(answers: Any, journal: Journal, total: int, progress: Callable[[int, int], None]) -> None:
    """Write answers down as they come, each file's first."""
    for row in answers:
        answer = json.loads(row["answer"])
        if answer["source"] not in journal.done:
            journal.add(answer)
        progress(len(journal.done), max(total, len(journal.done)))

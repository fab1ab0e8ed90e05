"""What a queue has paid for, in files: one job is one circuit, named by the hash of what it asks.

    KEY.intent   the job is about to be submitted to a machine
    KEY.handle   it was taken; any later process finds the answer by what is written here
    KEY.counts   it was answered

Each file is written whole or not at all. Nothing in them is a credential.
"""

import asyncio
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medqua.core.errors import QuantumError
from medqua.core.quantum.runtime.remote import keep
from medqua.core.quantum.runtime.sampling import Circuit, derived_seed

VERSION = 1
"""Of what is hashed."""


@dataclass(frozen=True)
class Job:
    """One circuit to be measured."""

    circuit: Circuit
    """What runs."""

    target: str
    """Where, options included."""

    shots: int
    """Number of measurements."""

    seed: int
    """Seed of the queue; of measurements on simulators."""

    repeat: int = 0
    """How many equal circuits stand before it: each is measured by itself."""

    @property
    def key(self) -> str:
        """SHA-256 of everything above: equal for equal questions, whichever run asks."""
        text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def own_seed(self) -> int:
        """Seed of this job's measurements on a simulator."""
        return derived_seed(int(self.key[:15], 16))


def jobs_of(circuits: Sequence[Circuit], target: str, shots: int, seed: int) -> list[Job]:
    """Return a job for each circuit, in order; equal circuits are told apart."""
    seen: dict[Circuit, int] = {}
    jobs = []
    for circuit in circuits:
        jobs.append(Job(circuit, target, shots, seed, seen.setdefault(circuit, 0)))
        seen[circuit] += 1
    return jobs


class Checkpoint:
    """A folder of jobs, held by one run at a time.

    The lock is shared with the CUDA-Q process of the run: after a kill it is free only when that
    has kept the submission it had in hand.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = -1
        """File descriptor of the lock while it is held, else -1."""

    async def hold(self, patience: float) -> None:
        """Take the lock.

        Raises:
            QuantumError: Another run has it still after `patience` seconds, or the folder cannot
                be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise QuantumError(
                f"checkpoint folder {self.folder} cannot be used: {error.strerror}"
            ) from error
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= end:
                    self.release()
                    raise QuantumError(
                        f"another run is using the checkpoint folder {self.folder}: wait for it, "
                        "or choose another folder"
                    ) from None
            await asyncio.sleep(0.1)

    def release(self) -> None:
        """Give the lock back."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1

    def path(self, job: Job, kind: str) -> Path:
        """Return the file of a job that is `intent`, `handle` or `counts`."""
        return self.folder / f"{job.key}.{kind}"

    def counts(self, job: Job) -> dict[str, int] | None:
        """Return what a job was answered, or None."""
        path = self.path(job, "counts")
        if not path.exists():
            return None
        try:
            return {str(bits): int(count) for bits, count in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise QuantumError(
                f"{path} is damaged: remove it to fetch or measure this circuit again"
            ) from error

    def handle(self, job: Job) -> str | None:
        """Return the handle of a job that was submitted, or None."""
        path = self.path(job, "handle")
        return path.read_text() if path.exists() else None

    def in_doubt(self, job: Job) -> bool:
        """Whether nobody knows if a job reached its machine."""
        return self.path(job, "intent").exists() and not self.path(job, "handle").exists()

    def intend(self, job: Job) -> None:
        """Note that a job is about to be submitted."""
        keep(self.path(job, "intent"), json.dumps({"target": job.target, "shots": job.shots}))

    def answered(self, job: Job, counts: dict[str, int]) -> None:
        """Keep an answer."""
        keep(self.path(job, "counts"), json.dumps(counts))

    def forget(self, job: Job) -> None:
        """Forget a submission that was refused or failed, so that it may be made anew."""
        for kind in ("handle", "intent"):
            self.path(job, kind).unlink(missing_ok=True)

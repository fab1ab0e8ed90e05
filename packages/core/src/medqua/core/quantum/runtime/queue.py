"""Circuits to a simulator, an emulated provider or a machine, each paid once.

    queue = JobQueue("ionq:machine=qpu.aria-1", shots=1000, folder="runs/aria", price=Price(...))
    circuits = circuits_of(bottleneck.ansatz, bottleneck.theta, angles, depth)
    print(queue.estimate(circuits))
    result = queue.run(circuits)

Jobs go in batches, a bounded number of them in flight. What was answered is kept, and so is the
handle of what was submitted: a run that ended for whatever reason is resumed by running it again.
"""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medqua.core.errors import ConfigError, QuantumError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime.checkpoint import Checkpoint, Job, jobs_of
from medqua.core.quantum.runtime.errors import ProviderError
from medqua.core.quantum.runtime.reference import exact_values
from medqua.core.quantum.runtime.sampling import Circuit, expectations
from medqua.core.quantum.runtime.targets import check, find
from medqua.core.quantum.runtime.worker import Worker


@dataclass(frozen=True)
class Price:
    """What a provider charges, in the currency that the user thinks in."""

    shot: float
    """For each measurement."""

    job: float = 0.0
    """For each circuit submitted."""

    budget: float = float("inf")
    """What one run may cost at most."""


@dataclass(frozen=True)
class Policy:
    """How patient a queue is.

    Raises:
        ConfigError: A number out of range.
    """

    batch: int = 8
    """Circuits that are submitted together."""

    in_flight: int = 2
    """Batches that wait for answers at the same time, at most."""

    retries: int = 4
    """How often a job is tried again after an error that may pass."""

    first_wait: float = 1.0
    """Seconds before the first of them; each later wait is twice as long, times 0.5 to 1.5."""

    longest_wait: float = 60.0
    """Seconds at most between two tries."""

    submit_timeout: float = 120.0
    """Seconds until a submission that is not acknowledged is given up; it is then in doubt."""

    deadline: float | None = None
    """Seconds until the run ends with what it has."""

    lock_patience: float = 30.0
    """Seconds to wait for another run that uses the same folder."""

    def __post_init__(self) -> None:
        """Refuse numbers that make no queue."""
        for name, least in (("batch", 1), ("in_flight", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: at least {least}")
        for name in ("first_wait", "longest_wait", "submit_timeout", "lock_patience", "deadline"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"{name} is {value} seconds: it must not be negative")


@dataclass(frozen=True)
class Estimate:
    """What a run would ask and cost, before anything is sent."""

    circuits: int
    """Circuits in all."""

    answered: int
    """Of these, answered by earlier runs."""

    waiting: int
    """Of these, submitted by earlier runs and to be fetched."""

    submissions: int
    """Circuits to submit."""

    shots: int
    """Measurements to submit."""

    cost: float | None
    """Price of the submissions; None where no price was given."""

    def __str__(self) -> str:
        """Say it in one line."""
        cost = "no price was given" if self.cost is None else f"cost {self.cost:.2f}"
        return (
            f"{self.circuits} circuits: {self.answered} answered, {self.waiting} submitted before, "
            f"{self.submissions} to submit with {self.shots} shots in all; {cost}"
        )


@dataclass(frozen=True)
class Value:
    """What one circuit gave."""

    expectation: np.ndarray
    """<Z_i>, float64 `[n]`."""

    error: np.ndarray
    """Standard error of each, float64 `[n]`; 0 where exact."""

    path: str
    """What made it: the target, or `exact simulation`."""

    counts: Mapping[str, int]
    """Bit strings that were read; empty where exact."""

    resumed: bool = False
    """Whether an earlier run had submitted it."""

    reason: str = ""
    """Why it is not the target's, where it is not."""

    @property
    def shots(self) -> int:
        """Measurements that were answered; 0 where exact."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class QueueResult:
    """What a run gave."""

    values: tuple[Value | None, ...]
    """One for each circuit, in order; None where there is no answer."""

    submissions: int
    """Circuits that this run submitted."""

    @property
    def expectations(self) -> np.ndarray:
        """<Z_i>, float64 `[circuits, n]`; NaN where there is no answer."""
        width = next((len(v.expectation) for v in self.values if v is not None), 0)
        none = np.full(width, np.nan)
        rows = [none if v is None else v.expectation for v in self.values]
        return np.array(rows).reshape(len(rows), width)

    @property
    def paths(self) -> dict[str, int]:
        """How many values each path made."""
        names = ["no answer" if v is None else v.path for v in self.values]
        return {name: names.count(name) for name in dict.fromkeys(names)}


class UnfinishedError(QuantumError):
    """A run that ended before every circuit was answered; what it has is kept and in `result`."""

    def __init__(self, message: str, result: QueueResult) -> None:
        super().__init__(message)
        self.result = result


class JobQueue:
    """An asynchronous queue to one target.

    Args:
        target: Name of a target that answers by measurements, or of a simulator.
        shots: Number of measurements of each circuit.
        folder: Where submitted and finished jobs are kept.
        seed: Seed of measurements on simulators.
        policy: Bounds, retries and times.
        price: What the provider charges; needed for a machine.
        fallback: `none`; or `exact`: what has no answer when the run ends is simulated exactly,
            noiseless, and says so in `Value.path`.
        least: Share of the shots that an answer must have to be taken.
        resubmit_in_doubt: Submit again what may or may not have reached a machine, and may be
            charged twice.

    Raises:
        ConfigError: A number out of range, or a machine without a price.
        QuantumError: The target cannot be used here.
    """

    def __init__(
        self,
        target: str,
        shots: int,
        folder: str | Path,
        *,
        seed: int = 0,
        policy: Policy | None = None,
        price: Price | None = None,
        fallback: str = "none",
        least: float = 1.0,
        resubmit_in_doubt: bool = False,
    ) -> None:
        if shots < 1:
            raise ConfigError(f"shots is {shots}: at least 1")
        if fallback not in ("none", "exact"):
            raise ConfigError(f"fallback is {fallback!r}: choose 'none' or 'exact'")
        if not 0 < least <= 1:
            raise ConfigError(f"least is {least}: a share of the shots, above 0 and at most 1")
        self.target = find(target)
        check(self.target, shots=shots)
        if self.target.remote and price is None:
            raise ConfigError(
                f"target {target!r} is a machine: give price=Price(shot=..., job=..., budget=...) "
                "as your provider states it"
            )
        self.shots, self.seed, self.price = shots, seed, price
        self.policy = policy or Policy()
        self.fallback, self.least = fallback, least
        self.resubmit_in_doubt = resubmit_in_doubt
        self.checkpoint = Checkpoint(Path(folder))
        self._stop: Callable[[], object] | None = None

    def estimate(self, circuits: Sequence[Circuit]) -> Estimate:
        """Return what a run of these circuits would ask and cost now; sends nothing."""
        jobs = jobs_of(circuits, self.target.label, self.shots, self.seed)
        answered = sum(self.checkpoint.path(job, "counts").exists() for job in jobs)
        waiting = sum(
            self.checkpoint.path(job, "handle").exists()
            and not self.checkpoint.path(job, "counts").exists()
            for job in jobs
        )
        left = len(jobs) - answered - waiting
        cost = None
        if self.price is not None:
            cost = left * (self.price.job + self.shots * self.price.shot)
        return Estimate(len(jobs), answered, waiting, left, left * self.shots, cost)

    def run(self, circuits: Sequence[Circuit]) -> QueueResult:
        """Return what the circuits give: `gather` for programs without an event loop."""
        return asyncio.run(self.gather(circuits))

    def measure(self, circuits: Sequence[Circuit]) -> list[Mapping[str, int]]:
        """Return the counts of the circuits: what `mitigation` asks for.

        Raises:
            UnfinishedError: Some have none, be there a fallback or not.
        """
        result = self.run(circuits)
        without = [v for v in result.values if v is not None and not v.counts]
        if without:
            raise UnfinishedError(
                f"{len(without)} of {len(circuits)} circuits were not measured: "
                f"{without[0].reason}. Mitigation needs counts",
                result,
            )
        return [value.counts for value in result.values if value is not None]

    def cancel(self) -> None:
        """End the run that is going on, from any thread: submit nothing more, keep what there is.

        Jobs that a machine has taken stay there and are fetched when the run is resumed.
        """
        if self._stop is not None:
            self._stop()

    async def gather(self, circuits: Sequence[Circuit]) -> QueueResult:
        """Return what the circuits give, one value each.

        Raises:
            UnfinishedError: Some have no answer and there is no fallback. What was answered or
                submitted is kept: run again to resume.
            QuantumError: The run would cost more than the budget, another run holds the folder,
                or jobs are in doubt.
        """
        jobs = jobs_of(circuits, self.target.label, self.shots, self.seed)
        await self.checkpoint.hold(self.policy.lock_patience)
        run = _Run(self, jobs)
        try:
            self._refuse(circuits, jobs)
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            self._stop = lambda: loop.call_soon_threadsafe(stop.set)
            await run.until(stop)
        finally:
            self._stop = None
            await run.close()
            self.checkpoint.release()
        return self._result(run)

    def _refuse(self, circuits: Sequence[Circuit], jobs: Sequence[Job]) -> None:
        """Refuse to begin what might be paid twice or costs too much."""
        doubtful = [job for job in jobs if self.checkpoint.in_doubt(job)]
        if doubtful and not self.target.remote:
            for job in doubtful:
                self.checkpoint.forget(job)
        elif doubtful and not self.resubmit_in_doubt:
            raise QuantumError(
                f"{len(doubtful)} circuits may or may not have reached {self.target.label} before "
                "an earlier run ended: look into your account there; resubmit_in_doubt=True "
                "submits them again, and they may then be charged twice"
            )
        estimate = self.estimate(circuits)
        if self.price is not None and (estimate.cost or 0.0) > self.price.budget:
            raise QuantumError(
                f"{estimate}, more than the budget of {self.price.budget:.2f}: nothing was sent"
            )

    def _result(self, run: "_Run") -> QueueResult:
        """Return the result, with the fallback where there is one."""
        result = QueueResult(tuple(run.values), run.submissions)
        reasons = dict.fromkeys(run.reasons[k] for k, v in enumerate(run.values) if v is None)
        if not reasons:
            return result
        if self.fallback == "none":
            raise UnfinishedError(
                f"{run.values.count(None)} of {len(run.values)} circuits have no answer: "
                f"{'; '.join(list(reasons)[:3])}. What was answered or submitted is kept in "
                f"{self.checkpoint.folder}: run again to resume",
                result,
            )
        values = [value or run.simulated(k) for k, value in enumerate(run.values)]
        return dataclasses.replace(result, values=tuple(values))


class _Run:
    """One run of a queue."""

    def __init__(self, queue: JobQueue, jobs: Sequence[Job]) -> None:
        self.queue, self.policy, self.kept = queue, queue.policy, queue.checkpoint
        self.jobs = jobs
        self.values: list[Value | None] = [None] * len(jobs)
        self.reasons = ["the run ended before it was submitted"] * len(jobs)
        self.submissions = 0
        self._worker = Worker(self.kept.lock)
        self._one = asyncio.Lock()  # submissions go one by one, so that a kill leaves one in hand
        self._flights = asyncio.Semaphore(self.policy.in_flight)

    async def until(self, stop: asyncio.Event) -> None:
        """Work until all is answered, `stop` is set or the deadline has come."""
        open_jobs = [k for k, job in enumerate(self.jobs) if not self._known(k, job)]
        size = self.policy.batch
        batches = [open_jobs[i : i + size] for i in range(0, len(open_jobs), size)]
        work = asyncio.gather(*(self._batch(batch) for batch in batches))
        ending = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait(
                (work, ending),
                timeout=self.policy.deadline,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if work.done():
                await work
                return
            why = "it was cancelled" if stop.is_set() else "the deadline passed"
            for k in open_jobs:
                state = "waiting for its answer" if self.kept.handle(self.jobs[k]) else "queued"
                self.reasons[k] = f"{why} while it was {state}"
        finally:
            for task in (work, ending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def close(self) -> None:
        """End the worker, when it has kept the submission in hand."""
        await self._worker.close(grace=min(10.0, self.policy.submit_timeout))

    def simulated(self, k: int) -> Value:
        """Return the exact value of job `k`, labelled."""
        exact = exact_values(self.jobs[k].circuit)
        return Value(exact, 0 * exact, "exact simulation", {}, reason=self.reasons[k])

    def _known(self, k: int, job: Job) -> bool:
        """Take an answer of an earlier run, if there is one."""
        counts = self.kept.counts(job)
        if counts is not None:
            self._take(k, counts, resumed=True)
        return counts is not None

    def _take(self, k: int, counts: dict[str, int], resumed: bool) -> None:
        """Take an answer with enough shots.

        Raises:
            QuantumError: Too few, or no measurement of this circuit.
        """
        job, name = self.jobs[k], self.queue.target.label
        values, errors = expectations(counts, job.circuit.ansatz.n_qubits)
        got = sum(counts.values())
        rounding = len(counts) if self.queue.target.remote else 0  # some answer with frequencies
        if got + rounding < self.queue.least * job.shots:
            raise QuantumError(
                f"{name} answered {got} of {job.shots} shots: least={got / job.shots:.3g} would "
                "take them"
            )
        self.values[k] = Value(values, errors, name, counts, resumed)

    async def _batch(self, batch: Sequence[int]) -> None:
        """Submit some jobs, then wait for their answers."""
        async with self._flights:
            handles = {k: await self._patiently(k, self._submit) for k in batch}
            await asyncio.gather(
                *(
                    self._patiently(k, self._fetch, resumed)
                    for k, resumed in handles.items()
                    if resumed is not None
                )
            )

    async def _patiently(
        self, k: int, step: "Callable[..., object]", *arguments: object
    ) -> bool | None:
        """Take a step for one job, again after errors that may pass; None if it is given up."""
        for attempt in range(self.policy.retries + 1):
            try:
                done: bool = await step(k, *arguments)  # type: ignore[misc]
                return done
            except ProviderError as error:
                self.reasons[k] = str(error)
                if error.kind in ("refused", "doubt"):
                    return None
                if error.kind == "failed":
                    self.kept.forget(self.jobs[k])
            except QuantumError as error:
                self.reasons[k] = str(error)
                return None
            if attempt < self.policy.retries:
                wait = min(self.policy.first_wait * 2**attempt, self.policy.longest_wait)
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))
        return None

    async def _submit(self, k: int) -> bool:
        """Submit a job unless it is; return whether it was already."""
        job = self.jobs[k]
        async with self._one:
            if self.kept.handle(job) is not None:
                return True
            if self.queue.target.remote:
                self.kept.intend(job)
            self.submissions += 1
            try:
                await self._worker.ask(
                    "submit",
                    self.policy.submit_timeout,
                    target=job.target,
                    circuit=dataclasses.asdict(job.circuit),
                    shots=job.shots,
                    seed=job.own_seed,
                    save=str(self.kept.path(job, "handle")),
                )
            except TimeoutError:
                await self._worker.close()
                if self.kept.handle(job) is None:
                    raise ProviderError(
                        f"{self.queue.target.label} did not acknowledge a submission within "
                        f"{self.policy.submit_timeout:g} s: it is in doubt",
                        "doubt",
                    ) from None
            except ProviderError as error:
                if error.kind in ("retry", "refused"):
                    self.submissions -= 1
                    self.kept.forget(job)
                raise
        return False

    async def _fetch(self, k: int, resumed: bool) -> bool:
        """Wait for a job's answer and keep it; submit it anew if it failed meanwhile."""
        job = self.jobs[k]
        handle = self.kept.handle(job)
        if handle is None:
            await self._submit(k)
            return await self._fetch(k, False)
        self.reasons[k] = f"{self.queue.target.label} has not answered yet"
        try:
            counts = await self._worker.ask("fetch", 1e9, target=job.target, handle=handle)
        except ProviderError as error:
            if error.kind == "doubt":  # the process died, the handle did not
                raise ProviderError(str(error), "retry") from error
            raise
        self._take(k, counts, resumed)
        self.kept.answered(job, counts)
        return True


def circuits_of(
    ansatz: Ansatz, theta: Tensor, angles: Tensor, depth: int | Tensor
) -> list[Circuit]:
    """Return the circuit of every token.

    Args:
        ansatz: The circuit's form.
        theta: `[max_depth, n, 3]` (radian).
        angles: phi, `[tokens, n]` (radian).
        depth: Number of layers, one for all tokens or int64 `[tokens]`.

    Raises:
        ShapeError: Shapes that do not belong together.
        ConfigError: A depth out of range, or an angle that is not finite.
    """
    tokens = angles.shape[0]
    depths = depth.tolist() if isinstance(depth, Tensor) else [depth] * tokens
    if angles.shape[1:] != (ansatz.n_qubits,) or len(depths) != tokens:
        raise ShapeError(
            f"angles are {list(angles.shape)} and depths {len(depths)}: needed "
            f"[tokens, {ansatz.n_qubits}] and one depth for each token"
        )
    flat = tuple(theta.detach().to("cpu", torch.float64).flatten().tolist())
    rows = angles.detach().to("cpu", torch.float64).tolist()
    return [Circuit(ansatz, tuple(row), flat, d) for row, d in zip(rows, depths, strict=True)]

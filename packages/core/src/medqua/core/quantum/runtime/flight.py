"""One run of a queue: batches in flight, tries, answers."""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import Callable, Sequence

from medqua.core.errors import QuantumError
from medqua.core.quantum.runtime.checkpoint import Checkpoint, Job
from medqua.core.quantum.runtime.errors import ProviderError
from medqua.core.quantum.runtime.plan import Policy, Value
from medqua.core.quantum.runtime.reference import exact_values
from medqua.core.quantum.runtime.sampling import expectations
from medqua.core.quantum.runtime.targets import Target
from medqua.core.quantum.runtime.worker import Worker


class Run:
    """One run: every job from its file, or to the target and back.

    Args:
        target: Where jobs go.
        policy: Bounds, retries and times.
        kept: Where jobs are kept; its lock is held.
        jobs: The jobs.
        least: Share of the shots that an answer must have.
    """

    def __init__(
        self, target: Target, policy: Policy, kept: Checkpoint, jobs: Sequence[Job], least: float
    ) -> None:
        self.target, self.policy, self.kept, self.least = target, policy, kept, least
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
        job, name = self.jobs[k], self.target.label
        values, errors = expectations(counts, job.circuit.ansatz.n_qubits)
        got = sum(counts.values())
        rounding = len(counts) if self.target.remote else 0  # some answer with frequencies
        if got + rounding < self.least * job.shots:
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
            await self._ready()  # first: what ends here was never sent, and is in no doubt
            if self.target.remote:
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
                        f"{self.target.label} did not acknowledge a submission within "
                        f"{self.policy.submit_timeout:g} s: it is in doubt",
                        "doubt",
                    ) from None
            except ProviderError as error:
                if error.kind in ("retry", "refused"):
                    self.submissions -= 1
                    self.kept.forget(job)
                raise
        return False

    async def _ready(self) -> None:
        """Wait for the CUDA-Q process.

        Raises:
            ProviderError: It ended before anything was asked of it; to be tried again.
        """
        try:
            await self._worker.start()
        except ProviderError as error:
            raise ProviderError(str(error), "retry") from error

    async def _fetch(self, k: int, resumed: bool) -> bool:
        """Wait for a job's answer and keep it; submit it anew if it failed meanwhile."""
        job = self.jobs[k]
        handle = self.kept.handle(job)
        if handle is None:
            await self._submit(k)
            return await self._fetch(k, False)
        self.reasons[k] = f"{self.target.label} has not answered yet"
        try:
            counts = await self._worker.ask("fetch", 1e9, target=job.target, handle=handle)
        except ProviderError as error:
            if error.kind == "doubt":  # the process died, the handle did not
                raise ProviderError(str(error), "retry") from error
            raise
        self._take(k, counts, resumed)
        self.kept.answered(job, counts)
        return True

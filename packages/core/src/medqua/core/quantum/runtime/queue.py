"""Circuits to a simulator, an emulated provider or a machine, each paid once.

    queue = JobQueue("ionq:machine=qpu.aria-1", shots=1000, folder="runs/aria", price=Price(...))
    circuits = circuits_of(bottleneck.ansatz, bottleneck.theta, angles, depth)
    print(queue.estimate(circuits))
    result = queue.run(circuits)

Jobs go in batches, a bounded number of them in flight. What was answered is kept, and so is the
handle of what was submitted: a run that ended for whatever reason is resumed by running it again.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medqua.core.errors import ConfigError, QuantumError, ShapeError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime.checkpoint import Checkpoint, Job, jobs_of
from medqua.core.quantum.runtime.flight import Run
from medqua.core.quantum.runtime.plan import (
    Estimate,
    Policy,
    Price,
    QueueResult,
    UnfinishedError,
)
from medqua.core.quantum.runtime.sampling import Circuit
from medqua.core.quantum.runtime.targets import check, find


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
        run = Run(self.target, self.policy, self.checkpoint, jobs, self.least)
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

    def _result(self, run: Run) -> QueueResult:
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

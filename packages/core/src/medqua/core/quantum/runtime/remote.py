"""What a CUDA-Q process does when asked: submit a circuit, fetch an answer, probe a target.

The handle of a machine's job is CUDA-Q's own text of the future. It holds the credential that the
job was sent with; `redacted` takes that out before anything is kept, `restored` puts back what the
environment has now.
"""

import functools
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.runtime.errors import ProviderError, kind_of
from medqua.core.quantum.runtime.sampling import Circuit, call, derived_seed, sample
from medqua.core.quantum.runtime.targets import Target, check, find, select

SECRET = re.compile("token|secret|password|cookie|authorization|api_?key|refresh", re.IGNORECASE)
"""Names in a handle whose values are never kept, wherever they come from."""


def circuit_from(fields: Mapping[str, Any]) -> Circuit:
    """Return the circuit that `dataclasses.asdict` wrote."""
    ansatz = Ansatz(**fields["ansatz"])
    lists = {key: tuple(fields[key]) for key in ("phi", "theta")}
    return Circuit(**{**fields, "ansatz": ansatz, **lists})


def submit(target: str, circuit: Mapping[str, Any], shots: int, seed: int, save: str = "") -> str:
    """Send one circuit and return a handle by which any later process finds its answer.

    A simulator has answered when this returns: its handle is the answer.

    Args:
        target: Name of the target.
        circuit: The circuit as a dictionary.
        shots: Number of measurements.
        seed: Seed, for simulators.
        save: File to keep the handle in before it is returned.

    Raises:
        QuantumError: The target cannot do it.
        ProviderError: The provider did not take it.
    """
    where, what = find(target), circuit_from(circuit)
    if where.remote:
        check(where, shots=shots)
        cudaq = _machine(where)
        kernel, arguments = call(what)
        try:
            future = cudaq.sample_async(kernel, *arguments, shots_count=shots)
            handle = redacted(str(future), where)
        except RuntimeError as error:
            text = f"{where.label} did not take a circuit: {error}"
            raise ProviderError(text, kind_of(str(error), submitting=True)) from error
    else:
        handle = json.dumps({"counts": sample(where, what, shots, seed)})
    if save:
        keep(Path(save), handle)
    return handle


def fetch(target: str, handle: str) -> dict[str, int]:
    """Wait for the answer to a handle and return its counts; see `prepare`.

    Raises:
        ProviderError: The provider answers an error, or the job failed there.
    """
    where, answer = find(target), json.loads(handle)
    if "counts" in answer:
        return dict(answer["counts"])
    cudaq = _machine(where)
    try:
        return dict(cudaq.AsyncSampleResult(restored(handle, where)).get().items())
    except RuntimeError as error:
        text = f"{where.label} answered an error: {error}"
        raise ProviderError(text, kind_of(str(error), submitting=False)) from error


def probe(
    target: str,
    circuits: list[Mapping[str, Any]],
    shots: int | None,
    seed: int,
    noise: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run some circuits on a target and say how long each took.

    Args:
        target: Name of the target.
        circuits: The circuits as dictionaries.
        shots: Number of measurements of each; None on a target that answers exact values.
        seed: Seed of the measurements.
        noise: What `NoiseModel.from_dict` reads, on a target that answers exact values with noise.

    Returns:
        `seconds`, one a circuit; and `values`, exact <Z_i>, or with `shots` the `counts`.
    """
    where, runs = find(target), [circuit_from(fields) for fields in circuits]
    check(where, noisy=bool(noise), shots=shots)
    if noise and shots is not None:
        raise ConfigError("give a number of shots or noise: with noise the target answers exactly")
    model = None
    if noise:
        from medqua.core.quantum.noise import NoiseModel  # brings torch; a start does without

        model = NoiseModel.from_dict(noise)
    counts, values, seconds = [], [], []
    for k, run in enumerate(runs):
        start = time.perf_counter()
        if shots is not None:
            counts.append(sample(where, run, shots, derived_seed(seed, k)))
        else:
            from medqua.core.quantum.runtime.engine import CudaqEngine

            engine = CudaqEngine(run.ansatz, model, target=target, observe=True)
            values.append(engine.observe(list(run.phi), list(run.theta), run.depth))
        seconds.append(time.perf_counter() - start)
    return {"counts": counts, "values": values, "seconds": seconds}


def prepare(target: str) -> None:
    """Select a machine in the main thread, before others wait for it: CUDA-Q crashes otherwise."""
    where = find(target)
    if where.remote:
        check(where, shots=1)
        _machine(where)


@functools.lru_cache(maxsize=1)
def _machine(target: Target) -> ModuleType:
    """Return CUDA-Q with the machine selected, which is done once: others may be waiting on it."""
    return select(target)


def redacted(handle: str, target: Target) -> str:
    """Return a handle without credentials; those of the environment leave their names behind."""
    held = {name: os.environ[name] for name in target.credentials if os.environ.get(name)}

    def clean(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(k, v) for k, v in value.items()}
        if isinstance(value, list):
            return [clean(key, v) for v in value]
        if not isinstance(value, str):
            return value
        for name, secret in held.items():
            value = value.replace(secret, f"${{{name}}}")
        return "" if SECRET.search(key) and "${" not in value else value

    return json.dumps(clean("", json.loads(handle)))


def restored(handle: str, target: Target) -> str:
    """Return a handle with the credentials that the environment has now."""
    for name in target.credentials:
        secret = json.dumps(os.environ.get(name, ""))[1:-1]
        handle = handle.replace(f"${{{name}}}", secret)
    return handle


def keep(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


VERBS: Mapping[str, Callable[..., Any]] = {
    "prepare": prepare,
    "submit": submit,
    "fetch": fetch,
    "probe": probe,
}
"""What can be asked."""

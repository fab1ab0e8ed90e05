"""CUDA-Q targets by name, with what each can do as data, and the check before one is used.

A name may carry options of its target: `nvidia:option=mqpu,fp64`, `ionq:machine=qpu.aria-1`;
several are parted by `;`. Credentials are no options: they come from the environment alone.

A target of CUDA-Q is chosen for the whole process. `select` goes from any to any other and back,
emulated ones included (leaving `braket` takes 25 s, whatever the credentials: its client library
shuts down); work that must not meet another target's runs in a `Worker`.
"""

import difflib
import os
from dataclasses import dataclass, replace
from types import ModuleType

from medqua.core.errors import ConfigError, QuantumError


@dataclass(frozen=True)
class Target:
    """What can be asked of one CUDA-Q target."""

    name: str
    """What the user writes."""

    backend: str
    """What CUDA-Q calls it."""

    options: tuple[tuple[str, str | bool], ...] = ()
    """Options of `cudaq.set_target`."""

    exact: bool = True
    """Expectation values are exact; else they are averages over shots, whose number must be
    given."""

    statevector: bool = False
    """Noiseless simulation of one state: the unitary of the layers stands for it."""

    noise: bool = False
    """A noise model acts; on the others CUDA-Q would ignore it without an error."""

    gpu: bool = False
    """Needs an NVIDIA GPU."""

    remote: bool = False
    """Circuits go over the network to a provider, who may charge for them."""

    credentials: tuple[str, ...] = ()
    """Environment variables that must be set."""

    unusable: str = ""
    """Why it cannot run this circuit, or not from here; empty where it can."""

    @property
    def emulated(self) -> bool:
        """Whether the provider's compilation runs here, on a local simulator, without noise."""
        return dict(self.options).get("emulate") is True

    @property
    def label(self) -> str:
        """The name with its options."""
        shown = [f"{key}={value}" for key, value in self.options if key != "emulate"]
        if dict(TARGETS[self.name].options) == dict(self.options):
            return self.name
        return f"{self.name}:{';'.join(shown)}"


CREDENTIALS = {
    "ionq": ("IONQ_API_KEY",),
    "quantinuum": ("CUDAQ_QUANTINUUM_CREDENTIALS",),
    "oqc": ("OQC_URL", "OQC_DEVICE", "OQC_AUTH_TOKEN"),
    "infleqtion": ("SUPERSTAQ_API_KEY",),
    "anyon": ("CUDAQ_ANYON_CREDENTIALS",),
    "braket": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "qbraid": ("QBRAID_API_KEY",),
    "scaleway": ("SCW_PROJECT_ID", "SCW_SECRET_KEY"),
}
"""Providers of gate machines that CUDA-Q 0.16 also emulates offline -> what they log in with."""

SECRETS = ("key", "token", "secret", "password", "credential")
"""Parts of the names of options that are refused."""

EMULATION = "its emulation fetches the machine's description from the provider first"
NO_GATES = "it is programmed by pulses or photons, not by this circuit's gates"

TARGETS = {
    target.name: target
    for target in (
        Target("qpp-cpu", "qpp-cpu", statevector=True),
        Target("density-matrix-cpu", "density-matrix-cpu", noise=True),
        Target("nvidia", "nvidia", statevector=True, gpu=True),
        Target("nvidia-fp64", "nvidia", (("option", "fp64"),), statevector=True, gpu=True),
        Target("nvidia-mqpu", "nvidia", (("option", "mqpu"),), statevector=True, gpu=True),
        Target("tensornet", "tensornet", gpu=True),
        *(
            Target(f"{name}-emulated", name, (("emulate", True),), exact=False)
            for name in CREDENTIALS
        ),
        *(
            Target(name, name, exact=False, remote=True, credentials=variables)
            for name, variables in CREDENTIALS.items()
        ),
        Target("iqm-emulated", "iqm", (("emulate", True),), exact=False, unusable=EMULATION),
        Target("iqm", "iqm", exact=False, remote=True, credentials=("IQM_SERVER_URL", "IQM_TOKEN")),
        Target("tii", "tii", exact=False, remote=True, credentials=("TII_API_TOKEN",)),
        *(
            Target(name, name, exact=False, remote=True, unusable=NO_GATES)
            for name in ("pasqal", "quera", "orca")
        ),
    )
}
"""Name -> target."""


def find(name: str) -> Target:
    """Return the target of this name, with the options that follow it.

    Raises:
        QuantumError: No target has this name; those present are listed.
        ConfigError: Options that cannot be read, or a credential among them.
    """
    base, _, tail = name.partition(":")
    if base not in TARGETS:
        near = difflib.get_close_matches(base, TARGETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise QuantumError(
            f"CUDA-Q target {base!r} cannot evaluate the bottleneck here: choose one of "
            f"{', '.join(present())}{hint}"
        )
    target, options = TARGETS[base], dict(TARGETS[base].options)
    for item in filter(None, tail.split(";")):
        key, equals, value = item.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise ConfigError(f"target option {item!r}: write {base}:key=value;key=value")
        if any(word in key.lower() for word in SECRETS):
            raise ConfigError(
                f"target option {key!r} would keep a credential where settings are kept: set "
                f"{' and '.join(target.credentials) or 'the environment variable'} instead"
            )
        options[key.strip()] = value.strip()
    return replace(target, options=tuple(options.items()))


def obstacle(target: Target) -> str:
    """Return why a target cannot be used on this machine, or an empty string."""
    cudaq = _cudaq()
    if target.unusable:
        return target.unusable
    if not cudaq.has_target(target.backend):
        return "this build of CUDA-Q does not have it"
    if target.gpu and not cudaq.num_available_gpus():
        return "it needs an NVIDIA GPU and CUDA-Q finds none here"
    missing = [variable for variable in target.credentials if not os.environ.get(variable)]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        return f"{' and '.join(missing)} {verb} not set in the environment"
    return ""


def present() -> list[str]:
    """Return the names of the targets that can be used on this machine."""
    return [name for name, target in TARGETS.items() if not obstacle(target)]


def check(target: Target, *, noisy: bool = False, shots: int | None = None) -> None:
    """Refuse what a target cannot do here, before anything is asked of it.

    Args:
        target: The target.
        noisy: Whether a noise model is to act.
        shots: Number of measurements of each circuit, if any.

    Raises:
        QuantumError: The target is absent, needs a GPU or credentials that are not there, ignores
            noise, or needs a number of shots.
    """
    reason = obstacle(target)
    if reason:
        raise QuantumError(
            f"CUDA-Q target {target.name!r} cannot be used: {reason}. Present: "
            + ", ".join(present())
        )
    if noisy and not target.noise:
        noisy_ones = " or ".join(repr(t.name) for t in TARGETS.values() if t.noise)
        raise QuantumError(
            f"CUDA-Q target {target.name!r} ignores noise: choose target={noisy_ones}, or "
            "engine='fourier', which is exact with noise"
        )
    if shots is None and not target.exact:
        raise QuantumError(
            f"CUDA-Q target {target.name!r} answers by measurements: give shots, the number of "
            "measurements of each circuit"
        )


def select(target: Target) -> ModuleType:
    """Make a target the current one of this process and return the `cudaq` module.

    Raises:
        QuantumError: CUDA-Q refuses it.
    """
    cudaq = _cudaq()
    current = cudaq.get_target()
    plain = current.name == target.backend and current.is_emulated() == target.emulated
    if plain and not set(dict(target.options)) - {"emulate"} and not target.gpu:
        return cudaq
    try:
        cudaq.set_target(target.backend, **dict(target.options))
    except RuntimeError as error:
        raise QuantumError(f"CUDA-Q cannot use target {target.label!r}: {error}") from error
    return cudaq


def _cudaq() -> ModuleType:
    """Return CUDA-Q, imported when first needed: it takes half a second."""
    from medqua.core.quantum.runtime import kernels

    module: ModuleType = kernels.cudaq
    return module

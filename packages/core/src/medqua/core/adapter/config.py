"""The configuration of the Quasar adapter: every choice of the paper, and its options.

Paper: MedQua, a NISQ-aware quantum adapter for medical vision-language models, sections 2 and 3.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, no_type_check

from peft import LoraConfig, PeftConfig
from torch import nn

from medqua.core.adapter.placement import Blocks, find_decoder_layers
from medqua.core.adapter.registration import add_peft_type
from medqua.core.errors import ConfigError
from medqua.core.quantum.noise import NoiseModel

Entropy = Literal["signed", "normalised", "none"]
Scope = Literal["batch", "sample"]
Routing = Literal["ema", "topk", "random"]
Relaxation = Literal["ste", "gumbel"]
Route = Literal["all", "visual"]
Depth = Literal["adaptive", "fixed"]
Proportion = Literal["ste", "soft"]
Encoding = Literal["rms", "raw"]
Entangler = Literal["ring", "line", "all", "none"]
Engine = Literal["auto", "fourier", "dense", "gates", "triton", "cudaq"]
Bottleneck = Literal["circuit", "mlp", "fourier_features"]
Residual = Literal["plain", "relative"]

_CHOICES: dict[str, Any] = {
    "entropy": Entropy,
    "scope": Scope,
    "routing": Routing,
    "relaxation": Relaxation,
    "route": Route,
    "depth": Depth,
    "proportion": Proportion,
    "encoding": Encoding,
    "entangler": Entangler,
    "engine": Engine,
    "bottleneck": Bottleneck,
    "residual": Residual,
}
_PROJECTIONS = "q_proj|k_proj|v_proj|o_proj"
_LORA_REFUSED = ("bias", "modules_to_save", "task_type", "inference_mode", "peft_type")


@no_type_check  # values come from JSON and TOML: __post_init__ judges them and tells what to do
@dataclass
class QuasarConfig(PeftConfig):
    """Configuration of a `QuasarModel`.

    Mutable, because PEFT writes `base_model_name_or_path`, `inference_mode` and `target_modules`
    into it. It is saved as `adapter_config.json` and read back by PEFT.

    Raises:
        ConfigError: A value out of range, an unknown choice, or choices that contradict each other.
    """

    n_qubits: int = 8
    """n_q, qubits of the bottleneck; at least 2 (one qubit has nothing to entangle with)."""
    max_depth: int = 4
    """L_max, circuit layers at most; at least 1."""
    every: int = 6
    """K: an adapter on decoder blocks K, 2K, ... counted from 1 (section 3.3)."""
    blocks: Blocks = None
    """Instead of `every`: `"last"`, or explicit blocks counted from 1."""
    rank: int = 16
    """r, rank of the classical shadow (Eq. 7)."""
    alpha: float = 16.0
    """alpha of Eq. 7: the shadow is scaled by alpha / r."""
    dropout: float = 0.0
    """Probability of dropout in Eq. 7 and in Eq. 9, in [0, 1)."""
    target_ratio: float = 0.2
    """lambda*, share of active tokens meant for the quantum path, in [0, 1]."""
    entropy: Entropy = "signed"
    """Ent(H) of Eq. 4: `signed` as printed (nats), `normalised` (p^2, divided by log D), `none`."""
    scope: Scope = "batch"
    """Over which tokens k = floor(lambda* N_active) is counted: the batch, or each sample."""
    routing: Routing = "ema"
    """`ema`: threshold of Eq. 6. Ablations: `topk` (exact top-k always, neither EMA nor Eq. 10)
    and `random` (k random tokens)."""
    relaxation: Relaxation = "ste"
    """Gradient of the binary route: straight-through, or Gumbel-sigmoid gates in training."""
    gumbel_temperature: float = 1.0
    """Temperature of the Gumbel-sigmoid at step 0."""
    gumbel_floor: float = 0.1
    """Lowest temperature of the Gumbel-sigmoid."""
    gumbel_decay: float = 1e-3
    """Rate of its exponential annealing, per optimiser step."""
    route: Route = "all"
    """Tokens that may be routed: all, or visual tokens only (the others stay classical)."""
    temperature: float = 1.0
    """tau_r of Eq. 5 at the start; learned as softplus of a parameter."""
    ema_decay: float = 0.9
    """alpha of Eq. 6, in [0, 1)."""
    threshold_range: tuple[float, float] = (0.0, 1.0)
    """(theta_min, theta_max) of Eq. 6, in units of the gate g: 0 to 1."""
    proportion: Proportion = "ste"
    """lambda_hat of Eq. 10 from the straight-through mask, or `soft`: the mean gate."""
    eta: float = 1.0
    """eta of Eq. 11, weight of the quantum proportion loss."""
    xi: float = 0.0
    """xi of section 3.4, weight of the gate entropy H(g) in nats: negative keeps gates undecided
    (exploration), positive sharpens them."""
    epsilon: float = 0.01
    """epsilon of Eq. 9: the least weight of the quantum path, in [0, 1]."""
    gamma_init: float = 0.0
    """gamma of H' = H + gamma F at the start, learned; at 0 the adapted model is the backbone."""
    residual: Residual = "plain"
    """Unit of gamma: `plain` as printed; `relative`: H' = H + gamma rms(H) F, each token's own root
    mean square. F is of unit scale, and a backbone whose states are large hardly hears it plain."""
    norm_eps: float = 1e-5
    """Added to the variance in the LayerNorm of Eq. 9."""
    depth: Depth = "adaptive"
    """Circuit depth: chosen for each token from s(x) of Eq. 2, or always `max_depth`."""
    bottleneck: Bottleneck = "circuit"
    """What maps n_q angles to n_q numbers. Controls of as many parameters, blind to depth: `mlp`,
    and `fourier_features` with a trained linear read-out (`medqua.core.adapter.controls`)."""
    train_circuit: bool = True
    """Whether the circuit's angles are trained; if not they stay as drawn (a control)."""
    encoding: Encoding = "rms"
    """Input of the angles phi = clip(Linear(x), -pi, pi): x divided by its root mean square, or
    raw (large hidden states then sit at the clip, without gradient)."""
    entangler: Entangler = "ring"
    """W_l of Eq. 1: which CNOTs close a circuit layer."""
    engine: Engine = "auto"
    """What evaluates the circuit."""
    noise: dict[str, float] | None = None
    """Noise of the circuit, exact in expectation, such as `{"one_qubit": 1e-3, "two_qubit": 1e-2,
    "readout": 0.02}`: the names of `NoiseModel.from_dict`. None is noiseless."""
    shots: int | None = None
    """Measurements for each expectation value; None is exact."""
    seed: int | None = None
    """Seed of sampled shots."""
    target: str = "qpp-cpu"
    """CUDA-Q target, read when `engine="cudaq"`."""
    lora: dict[str, Any] | None = None
    """Fields of a `peft.LoraConfig` for LoRA under the same adapter name, for instance
    `{"r": 16, "target_modules": ["q_proj", "v_proj"]}`; by default on the decoder's q, k, v, o."""
    modules_to_save: list[str] | None = None
    """Names of further modules that are trained whole and saved with the adapter."""
    target_modules: tuple[str, ...] | None = None
    """Qualified names of the adapted decoder layers; written at injection, never by hand."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = add_peft_type()
        self.threshold_range = _pair(self.threshold_range)
        if self.target_modules is not None:
            self.target_modules = tuple(self.target_modules)
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), choices)
        _at_least("n_qubits", self.n_qubits, 2, "an entangler needs two qubits")
        for name in ("max_depth", "every", "rank"):
            _at_least(name, getattr(self, name), 1)
        for name in ("target_ratio", "epsilon"):
            _within(name, getattr(self, name), 0.0, 1.0)
        for name in ("dropout", "ema_decay"):
            _within(name, getattr(self, name), 0.0, 1.0, open_end=True)
        for name in ("alpha", "temperature", "gumbel_temperature", "gumbel_floor", "norm_eps"):
            _positive(name, getattr(self, name))
        for name in ("eta", "gumbel_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: needed 0 or more")
        if self.gumbel_floor > self.gumbel_temperature:
            raise ConfigError(
                f"gumbel_floor = {self.gumbel_floor} lies above gumbel_temperature = "
                f"{self.gumbel_temperature}: annealing lowers it; needed floor <= start"
            )
        if self.noise is not None:
            if not self.noise:
                raise ConfigError("noise = {}: name a strength, or leave noise out")
            NoiseModel.from_dict(self.noise)
        if self.shots is not None:
            _at_least("shots", self.shots, 1)
        if self.bottleneck != "circuit":
            for name, unset in (("noise", None), ("shots", None), ("train_circuit", True)):
                if getattr(self, name) != unset:
                    raise ConfigError(
                        f"bottleneck = {self.bottleneck!r} with {name} = {getattr(self, name)}: "
                        f"there is no circuit; leave {name} out, or choose bottleneck='circuit'"
                    )
        _check_blocks(self.blocks)
        if self.lora is not None:
            self.lora = _checked_lora(self.lora)


def lora_config(model: nn.Module, lora: Mapping[str, Any]) -> LoraConfig:
    """LoRA for a vision-language model, on the decoder's q, k, v, o unless told otherwise.

    Args:
        model: The model that it is for; its vision tower is left out.
        lora: Fields of a `peft.LoraConfig`, as in `QuasarConfig.lora`.

    Raises:
        ConfigError: Fields that LoraConfig does not have or take.
        BackboneError: No decoder layers were found.
    """
    name, _ = find_decoder_layers(model)
    inside = rf"{re.escape(name)}\.\d+\..*({_PROJECTIONS})"
    return LoraConfig(**{"target_modules": inside, **_checked_lora(lora)})


def _pair(value: Any) -> tuple[float, float]:
    """The clip range of Eq. 6 as a tuple (JSON has lists)."""
    low, high = value if isinstance(value, list | tuple) and len(value) == 2 else (1.0, 0.0)
    if not 0.0 <= low < high <= 1.0:
        raise ConfigError(
            f"threshold_range = {value}: needed (theta_min, theta_max) with "
            "0 <= theta_min < theta_max <= 1, in units of the gate"
        )
    return float(low), float(high)


def one_of(name: str, value: object, literal: Any) -> None:
    """Refuse a value that is not among those of a `Literal`, naming the nearest.

    Raises:
        ConfigError: An unknown value.
    """
    choices: tuple[str, ...] = get_args(literal)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name} = {value!r}: needed one of {', '.join(choices)}{hint}")


def _at_least(name: str, value: object, least: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        reason = f" ({why})" if why else ""
        raise ConfigError(f"{name} = {value!r}: needed a whole number of at least {least}{reason}")


def _within(name: str, value: Any, low: float, high: float, *, open_end: bool = False) -> None:
    if not (low <= value < high if open_end else low <= value <= high):
        raise ConfigError(f"{name} = {value}: needed {low} to {high}{' excluded' * open_end}")


def _positive(name: str, value: Any) -> None:
    if not value > 0:
        raise ConfigError(f"{name} = {value}: needed more than 0")


def _check_blocks(blocks: object) -> None:
    if blocks is None or blocks == "last":
        return
    whole = isinstance(blocks, list | tuple) and all(
        isinstance(block, int) and not isinstance(block, bool) and block >= 1 for block in blocks
    )
    if not whole or not blocks:
        raise ConfigError(
            f"blocks = {blocks!r}: needed None (every K-th), 'last', or a list of blocks counted "
            "from 1"
        )


def _checked_lora(lora: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what a LoraConfig would not take, or would take against the Quasar adapter."""
    known = {field.name for field in fields(LoraConfig)}
    for name in lora:
        if name in _LORA_REFUSED:
            raise ConfigError(
                f"lora sets {name!r}: it belongs to the whole adapter; set it on QuasarConfig "
                "itself, where it exists, or leave it out"
            )
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"lora sets {name!r}, which LoraConfig does not have{hint}")
    plain: dict[str, Any] = {
        name: sorted(value) if isinstance(value, set | frozenset) else value
        for name, value in lora.items()
    }
    _at_least("lora.r", plain.get("r", 1), 1)
    try:
        LoraConfig(**plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"lora = {plain}: LoraConfig refuses it: {error}") from error
    return plain

"""The arms of the experiment: what the paper's tables compare, and what a referee would ask for.

An arm is a few keys on top of a recipe, which tells the data, the backbone and the training that
all arms share. Every arm that has an adapter keeps the backbone frozen.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from medqua.core.errors import ConfigError
from medqua.core.findings.labels import NIH
from medqua.train.recipe import Recipe

Kind = Literal["comparison", "ablation", "control"]
"""Of the paper's Table 1 or beside it; of its Table 2; or asked for by a referee."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, or not to train, the model of a recipe."""

    name: str
    """As in `--arm NAME`."""

    title: str
    """As in tables."""

    kind: Kind
    """Which table it is in."""

    trains: str
    """What is trained."""

    question: str
    """What its comparison with MedQua answers."""

    overrides: tuple[str, ...]
    """Keys of the recipe that it sets, `key=value`."""


_BARE = ("backbone.adapter=none", "backbone.tune=head")
_LORA = ("adapter.lora.r=16", "adapter.lora.lora_alpha=16")
_MEDQUA = ("backbone.adapter=quasar", "backbone.tune=adapter")
_ADAPTER = "adapter, head"

ARMS: tuple[Arm, ...] = (
    Arm(
        name="zero_shot",
        title="Zero-shot",
        kind="comparison",
        trains="nothing",
        question="What does the backbone know by itself?",
        overrides=(*_BARE, "head.kind=answers", "evaluation.calibrate=false"),
    ),
    Arm(
        name="linear_probe",
        title="Linear probe",
        kind="comparison",
        trains="head",
        question="What do its frozen features hold already?",
        overrides=_BARE,
    ),
    Arm(
        name="sft",
        title="SFT",
        kind="comparison",
        trains="backbone, head",
        question="Does the adapter match training everything?",
        overrides=("backbone.adapter=none", "backbone.tune=full"),
    ),
    Arm(
        name="lora",
        title="LoRA",
        kind="comparison",
        trains="LoRA, head",
        question="Does it match the usual adapter, which has many more parameters?",
        overrides=("backbone.adapter=lora", "backbone.tune=adapter", *_LORA),
    ),
    Arm(
        name="medqua",
        title="MedQua",
        kind="comparison",
        trains=_ADAPTER,
        question="The method itself.",
        overrides=_MEDQUA,
    ),
    Arm(
        name="medqua_lora",
        title="MedQua + LoRA",
        kind="comparison",
        trains="adapter, LoRA, head",
        question="Does it add anything to LoRA?",
        overrides=(*_MEDQUA, *_LORA),
    ),
    Arm(
        name="fixed_ratio",
        title="Fixed ratio",
        kind="ablation",
        trains=_ADAPTER,
        question="Does a threshold that is learned beat the best 20 % of every batch?",
        overrides=(*_MEDQUA, "adapter.routing=topk"),
    ),
    Arm(
        name="no_proportion",
        title="No proportion term",
        kind="ablation",
        trains=_ADAPTER,
        question="Does Eq. 10 in the loss matter?",
        overrides=(*_MEDQUA, "adapter.eta=0"),
    ),
    Arm(
        name="mlp",
        title="MLP for the circuit",
        kind="control",
        trains=_ADAPTER,
        question="Does a perceptron of as many parameters, behind the same router, do as well?",
        overrides=(*_MEDQUA, "adapter.bottleneck=mlp"),
    ),
    Arm(
        name="fourier_features",
        title="Random Fourier features",
        kind="control",
        trains=_ADAPTER,
        question="Does a random series over the circuit's own frequencies do as well?",
        overrides=(*_MEDQUA, "adapter.bottleneck=fourier_features"),
    ),
    Arm(
        name="product_state",
        title="Product state",
        kind="control",
        trains=_ADAPTER,
        question="Does entanglement matter?",
        overrides=(*_MEDQUA, "adapter.entangler=none"),
    ),
    Arm(
        name="frozen_circuit",
        title="Frozen random circuit",
        kind="control",
        trains=_ADAPTER,
        question="Does training the circuit matter?",
        overrides=(*_MEDQUA, "adapter.train_circuit=false"),
    ),
    Arm(
        name="random_router",
        title="Random router",
        kind="control",
        trains=_ADAPTER,
        question="Does it matter which tokens reach the circuit, at the same ratio?",
        overrides=(*_MEDQUA, "adapter.routing=random"),
    ),
    Arm(
        name="random_router_mlp",
        title="Random router, MLP",
        kind="control",
        trains=_ADAPTER,
        question="With neither the router nor the circuit: what do shadow and fusion do alone?",
        overrides=(*_MEDQUA, "adapter.routing=random", "adapter.bottleneck=mlp"),
    ),
    Arm(
        name="shots",
        title="1,024 shots",
        kind="control",
        trains=_ADAPTER,
        question="Does it survive expectation values that are measured?",
        overrides=(*_MEDQUA, "adapter.shots=1024"),
    ),
    Arm(
        name="noise",
        title="Noisy gates and readout",
        kind="control",
        trains=_ADAPTER,
        question="Does it survive the errors of a published device?",
        overrides=(
            *_MEDQUA,
            "adapter.noise.one_qubit=1.6e-3",
            "adapter.noise.two_qubit=6.2e-3",
            "adapter.noise.readout=3.8e-2",
        ),
    ),
)
"""In the order of reports. The strengths of `noise` are the mean simultaneous errors of the
Sycamore processor: Arute et al. 2019, Nature 574, 505, Figure 2."""


def find_arm(name: str) -> Arm:
    """The arm of a name.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    for arm in ARMS:
        if arm.name == name:
            return arm
    names = [arm.name for arm in ARMS]
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"needed one of {', '.join(names)}"
    raise ConfigError(f"no arm {name!r}: {hint}")


def label_count(recipe: Recipe) -> int:
    """Number of logits as far as a recipe tells: a table of labels that is not read counts 14."""
    return len(getattr(recipe.data, "labels", ()) or NIH)

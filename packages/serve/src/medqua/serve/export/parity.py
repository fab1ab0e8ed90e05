"""How near an export is to the torch model, in numbers, before anybody may use it.

Both see the same images. The torch model is the bundle's, in float32, its circuits exact (trained
noise included, shots taken off), and its patch embedding multiplied out in float64: torch's float32
convolution alone is further off than all else together, so that it would be measured and not the
export. How far the model as it stands is from that is in the report too (`torch`).

Compared are logits, calibrated probabilities, the route of every token at every adapter, and, where
the images have labels, the AUROC of every label.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medqua.core.adapter.router import EntropyRouter
from medqua.core.errors import BundleError
from medqua.core.model.bundle import Bundle
from medqua.core.model.classifier import vision_language_model
from medqua.core.quantum.bottleneck import VariationalBottleneck
from medqua.serve.export.validation import Validation
from medqua.serve.inference.session import ServingSession

BATCH = 8
"""Images in one forward pass of either model."""


@dataclass(frozen=True)
class Tolerance:
    """What is near enough."""

    logit: float
    """Largest absolute difference of a logit."""
    probability: float
    """Largest absolute difference of a calibrated probability."""
    routes: float
    """Least share of tokens, over all adapters, that take the same path."""


TOLERANCES = {
    "fp32": Tolerance(logit=1e-4, probability=1e-4, routes=1.0),
    "fp16": Tolerance(logit=0.05, probability=0.01, routes=0.995),
    "int8": Tolerance(logit=1.0, probability=0.2, routes=0.98),
}
"""By precision. fp32 rounds in another order and nothing more. The others are wide enough for what
was measured (`docs/export.md`) and far too narrow for a graph that computes something else."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says of all images."""

    logits: np.ndarray
    """`[N, L]`."""
    routes: np.ndarray
    """`[N, adapters, T]` bool."""


def answers_of_bundle(bundle: Bundle, validation: Validation, *, exact: bool) -> Answers:
    """Ask the torch model; its circuits are made exact, in place.

    Args:
        bundle: The model.
        validation: The images.
        exact: Multiply the patch embedding out in float64.
    """
    for module in bundle.classifier.modules():
        if isinstance(module, VariationalBottleneck):
            module.shots, module.engine, module.target = None, "auto", "qpp-cpu"
    logits, routes = [], []
    for batch in validation.batches(bundle.image, BATCH):
        with _exact_patches(bundle, exact), _routes(bundle.classifier) as seen:
            logits.append(bundle.logits(batch, batch_size=BATCH))
        tokens = seen[0].shape[1] if seen else 0
        empty = np.zeros((len(batch), 0, tokens), np.bool_)
        routes.append(np.stack(seen, 1) if seen else empty)
    return Answers(np.concatenate(logits), np.concatenate(routes))


def answers_of_session(session: ServingSession, validation: Validation) -> Answers:
    """Ask an export."""
    size = min(BATCH, session.batch_size)
    scores = [session.scores(batch) for batch in validation.batches(session.image, size)]
    return Answers(
        np.concatenate([score.logits for score in scores]),
        np.concatenate([score.routes for score in scores]),
    )


def compare(
    ours: Answers, theirs: Answers, bundle: Bundle, validation: Validation
) -> dict[str, Any]:
    """Return how far two models' answers differ, as plain JSON values.

    Args:
        ours: Of the export.
        theirs: Of the model that it is compared with.
        bundle: Whose calibration and labels they have.
        validation: The images, with their labels if they have any.
    """
    chances = [_probabilities(bundle, answers.logits) for answers in (ours, theirs)]
    result: dict[str, Any] = {
        "max_logit_error": _largest(ours.logits - theirs.logits),
        "max_probability_error": _largest(chances[0] - chances[1]),
        "route_agreement": _agreement(ours.routes, theirs.routes),
        "tokens_routed": int(theirs.routes.sum()),
    }
    if validation.targets is None:
        return result | {"auroc": None, "auroc_absent": "the images have no labels"}
    both = [aurocs(answers.logits, validation.targets) for answers in (ours, theirs)]
    known = [k for k, value in enumerate(both[1]) if value is not None]
    if not known:
        return result | {"auroc": None, "auroc_absent": "no label has positives and negatives"}
    mine, others = ([values[k] or 0.0 for k in known] for values in both)
    return result | {
        "auroc": {
            "labels": len(known),
            "macro": float(np.mean(mine)),
            "macro_reference": float(np.mean(others)),
            "max_difference": _largest(np.subtract(mine, others)),
        },
        "auroc_absent": "",
    }


def judge(figures: dict[str, Any], precision: str, what: str) -> None:
    """Refuse figures outside the tolerance of a precision.

    Raises:
        BundleError: What is too far off, and by how much.
    """
    tolerance = TOLERANCES[precision]
    for key, got, limit in (
        ("max_logit_error", figures["max_logit_error"], tolerance.logit),
        ("max_probability_error", figures["max_probability_error"], tolerance.probability),
        ("route_agreement", -figures["route_agreement"], -tolerance.routes),
    ):
        if not got <= limit:  # written so that NaN fails too
            raise BundleError(
                f"{what} fails parity at {precision}: {key} is {abs(got):.3g}, needed "
                f"{abs(limit):g}; nothing is left behind. Export with another precision, measure "
                "on images of your own (--validation TABLE), or report it with the figures"
            )


def tolerance_of(precision: str) -> dict[str, float]:
    """Return a precision's tolerance as plain JSON values."""
    return asdict(TOLERANCES[precision])


def aurocs(scores: np.ndarray, targets: np.ndarray) -> list[float | None]:
    """AUROC of every label; None where positives or negatives are missing. Ties count half.

    Args:
        scores: `[N, L]`.
        targets: `[N, L]`; 1, 0, and anything else for unknown.
    """
    result: list[float | None] = []
    for score, target in zip(scores.T, targets.T, strict=True):
        positive, negative = score[target == 1], np.sort(score[target == 0])
        if not len(positive) or not len(negative):
            result.append(None)
            continue
        below = np.searchsorted(negative, positive, "left")
        upto = np.searchsorted(negative, positive, "right")
        result.append(float((below + upto).sum() / (2 * len(positive) * len(negative))))
    return result


def _probabilities(bundle: Bundle, logits: np.ndarray) -> np.ndarray:
    return np.array([[f.probability for f in row] for row in bundle.findings(logits)])


def _largest(differences: np.ndarray) -> float:
    return float(np.abs(differences).max(initial=0.0))


def _agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float((ours == theirs).mean()) if theirs.size else 1.0


@contextmanager
def _exact_patches(bundle: Bundle, exact: bool) -> Iterator[None]:
    """Meanwhile, embed patches by a matrix product in float64, which a convolution there is."""
    tower: Any = vision_language_model(bundle.classifier.backbone).base_model
    embed = getattr(getattr(tower, "visual", None), "patch_embed", None)
    if not exact or embed is None:
        yield
        return
    filters = embed.proj.weight.detach().flatten(1).double()

    def product(patches: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = patches.double() @ filters.T
        return embedded.to(embed.proj.weight.dtype)

    embed.forward = product
    try:
        yield
    finally:
        del embed.forward


@contextmanager
def _routes(model: nn.Module) -> Iterator[Sequence[np.ndarray]]:
    """Meanwhile, note what the routers decide, `[B, T]` each, in the order of the layers."""
    seen: list[np.ndarray] = []

    def note(module: nn.Module, arguments: Any, routed: Any) -> None:
        seen.append(routed.mask.cpu().numpy())

    routers = [module for module in model.modules() if isinstance(module, EntropyRouter)]
    handles = [router.register_forward_hook(note) for router in routers]
    try:
        with torch.inference_mode():
            yield seen
    finally:
        for handle in handles:
            handle.remove()

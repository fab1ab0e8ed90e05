"""Early stopping: whether a run has waited long enough for a better macro AUROC."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SCORE = "eval_macro_auroc"
"""Key of the log that is watched."""


def waited(scores: Sequence[float], min_delta: float = 0.0) -> int:
    """Evaluations since the last that was better than all before it.

    A score that cannot be computed (NaN) is no better than any.

    Args:
        scores: Macro AUROC of the validation split, one an evaluation.
        min_delta: By how much it must exceed the best so far.
    """
    best, since = -math.inf, 0
    for score in scores:
        if score > best + min_delta or (best == -math.inf and math.isfinite(score)):
            best, since = score, 0
        else:
            since += 1
    return since


def exhausted(history: Sequence[Mapping[str, Any]], patience: int, min_delta: float) -> bool:
    """Whether a run shall stop, by its log alone: a resumed run decides as one that went on.

    Args:
        history: Lines of the training log.
        patience: Evaluations to wait; 0 is for ever.
        min_delta: As in `waited`.
    """
    scores = [float(line[SCORE]) for line in history if SCORE in line]
    return bool(patience) and waited(scores, min_delta) >= patience


def best_step(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Step of the best evaluation, the first of equals; None without one."""
    lines = [line for line in history if math.isfinite(line.get(SCORE, math.nan))]
    best = max(lines, key=lambda line: float(line[SCORE]), default=None)
    return None if best is None else int(best["step"])


def describe(
    history: Sequence[Mapping[str, Any]], patience: int, min_delta: float
) -> dict[str, Any]:
    """What `run.json` says of early stopping."""
    step = best_step(history)
    scores = [float(line[SCORE]) for line in history if SCORE in line and line["step"] == step]
    return {
        "patience": patience,
        "min_delta": min_delta,
        "stopped": exhausted(history, patience, min_delta),
        "last_step": max((int(line["step"]) for line in history), default=0),
        "best_step": step,
        "best_macro_auroc": scores[0] if scores else None,
    }

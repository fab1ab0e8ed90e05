"""Many tests, one family: p values that keep the chance of any false alarm below the level."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Step-down Bonferroni (Holm 1979): valid whatever the tests' dependence.

    Args:
        p_values: One for each test; None where there was none, which counts for nothing.

    Returns:
        Adjusted p values, in the given order: `max over smaller ones of (m - rank) p`, at most 1.
    """
    tested = [i for i, p in enumerate(p_values) if p is not None]
    raw = np.array([p_values[i] for i in tested], dtype=np.float64)
    order = np.argsort(raw, kind="stable")
    stepped = raw[order] * np.arange(len(raw), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(raw) else stepped
    result: list[float | None] = [None] * len(p_values)
    for place, value in zip(order, adjusted, strict=True):
        result[tested[int(place)]] = float(value)
    return result

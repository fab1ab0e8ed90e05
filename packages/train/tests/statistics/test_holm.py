import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medqua.train.statistics.holm import holm


def test_worked_example():
    """0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02 (times 3, 1, 2, 4, kept monotone)."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_what_was_not_tested_counts_for_nothing():
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0.001, 0.5))
def test_rejects_what_the_step_down_procedure_rejects(p_values, level):
    order = np.argsort(p_values, kind="stable")
    rejected = set()
    for step, i in enumerate(order):
        if p_values[i] * (len(p_values) - step) > level:
            break
        rejected.add(int(i))
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= level} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from medqua.core.errors import ShapeError
from medqua.train.statistics.mcnemar import mcnemar


def answers(only_first, only_second, both=3, neither=2):
    first = np.r_[np.ones(only_first + both, bool), np.zeros(only_second + neither, bool)]
    second = np.r_[
        np.zeros(only_first, bool),
        np.ones(both + only_second, bool),
        np.zeros(neither, bool),
    ]
    return first, second


@pytest.mark.parametrize(("b", "c"), [(1, 6), (10, 3), (0, 5), (59, 16), (4, 4)])
def test_exact_is_the_binomial_test(b, c):
    found = mcnemar(*answers(b, c))
    assert (found.only_first, found.only_second) == (b, c)
    assert found.exact == pytest.approx(binomtest(b, b + c).pvalue, rel=1e-12)
    assert found.clustered == pytest.approx(chi2.sf((b - c) ** 2 / (b + c), 1), rel=1e-12)


def test_mid_p_takes_half_of_what_was_seen():
    """1 against 6: 2 (1/128 + 7/128) = 16/128 exact, less 7/128: 9/128 mid-p."""
    found = mcnemar(*answers(1, 6))
    assert found.exact == pytest.approx(16 / 128)
    assert found.mid_p == pytest.approx(9 / 128)


@given(st.integers(0, 30), st.integers(0, 30))
def test_antisymmetric_and_never_above_the_exact_test(b, c):
    there, back = mcnemar(*answers(b, c)), mcnemar(*answers(c, b))
    assert (there.exact, there.mid_p) == (back.exact, back.mid_p)
    assert there.clustered == pytest.approx(back.clustered)
    assert 0 < there.mid_p <= there.exact <= 1


def test_equal_answers_differ_by_nothing():
    right = np.array([True, False, True])
    found = mcnemar(right, right.copy(), ["a", "a", "b"])
    assert (found.exact, found.mid_p, found.clustered) == (1.0, 1.0, 1.0)


def test_no_image_no_difference():
    none = np.zeros(0, bool)
    assert mcnemar(none, none).exact == 1.0


def test_copies_of_a_patient_add_no_evidence():
    first, second = answers(12, 5)
    copies = np.repeat(np.arange(len(first)), 5).tolist()
    many = mcnemar(np.repeat(first, 5), np.repeat(second, 5), copies)
    assert many.clustered == pytest.approx(mcnemar(first, second).clustered)
    assert many.exact < mcnemar(first, second).exact


def test_patients_that_do_not_fit_are_refused():
    first, second = answers(1, 1)
    with pytest.raises(ShapeError, match="7 images of 2 patients"):
        mcnemar(first, second, "ab")

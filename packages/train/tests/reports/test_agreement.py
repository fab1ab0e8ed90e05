"""Agreement of texts with labels: scikit-learn's F1, and what blind writers reach."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medqua.core.errors import ShapeError
from medqua.core.findings.labels import CHEXPERT_NAMES
from medqua.train.data.manifest import IGNORED
from medqua.train.reports.agreement import agreement, agreement_of_texts, baselines
from medqua.train.statistics.resampling import Resampling

PLAN = Resampling(200, 0.95, 0)


def test_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    said = rng.choice([1, 0, -1, 2], (80, 5)).astype(np.int8)
    truth = rng.integers(0, 2, (80, 5)).astype(np.int8)
    found = agreement(said, truth, range(80), PLAN)
    assert found.micro == pytest.approx(f1_score(truth, said == 1, average="micro"))
    assert found.macro == pytest.approx(f1_score(truth, said == 1, average="macro"))
    assert found.per_label == pytest.approx(tuple(f1_score(truth, said == 1, average=None)))
    assert found.micro_interval.bounds is not None
    low, high = found.micro_interval.bounds
    assert low < found.micro < high


def test_uncertain_labels_and_absent_ones_take_no_part():
    said = np.array([[1, 0], [1, 0]], np.int8)
    truth = np.array([[1, 0], [IGNORED, 0]], np.int8)
    found = agreement(said, truth, ["a", "b"], PLAN)
    assert found.micro == found.macro == 1.0
    assert found.per_label == (1.0, None)


def test_texts_of_one_patient_have_an_interval_of_no_width():
    said, truth = np.array([[1], [0]], np.int8), np.array([[1], [1]], np.int8)
    found = agreement(said, truth, ["a", "a"], PLAN)
    assert found.micro == pytest.approx(2 / 3)
    assert found.micro_interval.bounds == pytest.approx((2 / 3, 2 / 3))


def test_who_states_nothing_scores_nothing():
    truth = np.zeros((3, 14), np.int8)
    truth[0, CHEXPERT_NAMES.index("Edema")] = 1
    texts = baselines(["Edema.", "No edema.", "Edema."], 3)
    assert texts["most_frequent"] == ("Edema.",) * 3
    assert set(texts["random"]) <= {"Edema.", "No edema."}
    assert agreement_of_texts(texts["all_negative"], truth, "abc", PLAN).micro == 0.0
    assert agreement_of_texts(texts["most_frequent"], truth, "abc", PLAN).micro == 0.5


def test_rows_must_be_of_the_same_studies():
    with pytest.raises(ShapeError, match="a row for each study"):
        agreement(np.zeros((2, 3), np.int8), np.zeros((3, 3), np.int8), "abc", PLAN)

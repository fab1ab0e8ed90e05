import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from torchmetrics.functional.classification import multilabel_auroc

from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.metrics import auroc, evaluate, macro_auroc

LABELS = ("a", "b", "c")


def sample(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, 2, (n, 3)).astype(np.int8)
    logits = np.round(rng.normal(size=(n, 3)) + (targets == 1), 1)  # rounding makes ties
    return logits, targets


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def test_figures_equal_those_of_scikit_learn():
    logits, targets = sample()
    figures = evaluate(logits, sigmoid(logits), targets, LABELS)
    for i, name in enumerate(LABELS):
        known = targets[:, i] != IGNORED
        y, z = targets[known, i], logits[known, i]
        row = figures["per_label"][name]
        assert row["auroc"] == pytest.approx(roc_auc_score(y, z), abs=1e-12)
        assert row["auprc"] == pytest.approx(average_precision_score(y, z), abs=1e-6)
        assert row["brier"] == pytest.approx(brier_score_loss(y, sigmoid(z)), abs=1e-12)
        assert row["accuracy"] == pytest.approx(np.mean((z > 0) == y))
        assert row["all_negative_accuracy"] == pytest.approx(np.mean(y == 0))
        assert row["positives"] + row["negatives"] == known.sum()
    assert figures["macro_auroc"] == pytest.approx(
        np.mean([row["auroc"] for row in figures["per_label"].values()])
    )


def test_macro_auroc_equals_that_of_torchmetrics():
    logits, targets = sample()
    peer = multilabel_auroc(
        torch.from_numpy(sigmoid(logits)), torch.from_numpy(targets).long(), 3, ignore_index=-1
    )
    assert macro_auroc(logits, targets) == pytest.approx(float(peer), abs=1e-6)


def test_accuracy_is_the_mean_over_labels_as_in_medmnist():
    targets = np.array([[1, 0, IGNORED], [0, 0, IGNORED], [1, 1, 1]], np.int8)
    logits = np.array([[1.0, -1, 0], [1, -1, 0], [1, -1, 1]])
    figures = evaluate(logits, sigmoid(logits), targets, LABELS)
    assert figures["accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures["all_negative_accuracy"] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_a_figure_without_meaning_is_none_with_its_reason():
    targets = np.array([[0, 1, IGNORED], [0, 1, IGNORED]], np.int8)
    logits = np.zeros((2, 3))
    figures = evaluate(logits, sigmoid(logits), targets, LABELS)
    rows = figures["per_label"]
    assert rows["a"]["auroc"] is None
    assert rows["a"]["auprc"] is None
    assert rows["a"]["reason"] == "no positive image"
    assert rows["b"]["reason"] == "no negative image"
    assert rows["c"]["reason"] == "no image with this label known"
    assert rows["c"]["brier"] is None
    assert figures["macro_auroc"] is None
    assert "reason" in figures


def test_saturated_probabilities_do_not_tie():
    logits = np.array([50.0, 60.0, 70.0, 80.0])  # sigmoid is 1.0 for all
    targets = np.array([0, 0, 1, 1], np.int8)
    figures = evaluate(logits[:, None], np.ones((4, 1)), targets[:, None], ("x",))
    assert figures["macro_auroc"] == 1.0
    assert figures["macro_auprc"] == 1.0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 1)), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_auroc_knows_only_the_order(pairs, scale):
    scores = np.array([float(s) for s, _ in pairs])
    targets = np.array([t for _, t in pairs], np.int8)
    area = auroc(scores, targets)
    assert auroc(scores * scale + 3, targets) == area
    flipped = auroc(-scores, targets)
    assert (area is None) == (flipped is None)
    if area is not None and flipped is not None:
        assert area + flipped == pytest.approx(1.0)

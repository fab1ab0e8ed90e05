import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from medqua.core.errors import ConfigError
from medqua.train.data.manifest import IGNORED
from medqua.train.sections import OptimSection
from medqua.train.trainer.losses import TaskLoss, balancing_weight

LABELS = ("Mass", "Edema", "Hernia")
LOGITS = torch.tensor([[0.3, -2.0, 4.0], [1.0, 5.0, -0.2]])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def test_without_options_it_is_binary_cross_entropy():
    assert TaskLoss()(LOGITS, TARGETS) == functional.binary_cross_entropy_with_logits(
        LOGITS, TARGETS
    )
    assert TaskLoss.of(OptimSection(), LABELS, np.zeros((1, 3), np.int8)) == TaskLoss()


@given(st.floats(0.0, 5.0), st.integers(0, 1000))
def test_the_focal_loss_is_its_closed_form(gamma, seed):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) * 3
    targets = (logits.roll(1, 0) > 0).float()
    p = (logits.double() * (2 * targets - 1)).sigmoid()
    q = (logits.double() * (1 - 2 * targets)).sigmoid()  # 1 - p, without cancellation
    expected = (q**gamma * -p.log()).mean().float()
    assert torch.allclose(TaskLoss(gamma)(logits, targets), expected, rtol=1e-4, atol=1e-6)


def test_a_label_weight_is_a_factor_of_its_column():
    optim = OptimSection(label_weights={"Hernia": 5.0})
    loss = TaskLoss.of(optim, LABELS, np.zeros((1, 3), np.int8))
    each = functional.binary_cross_entropy_with_logits(LOGITS, TARGETS, reduction="none")
    expected = (each * torch.tensor([1.0, 1.0, 5.0])).sum() / 6
    assert torch.allclose(loss(LOGITS, TARGETS), expected)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_ignored_labels_do_not_weigh_and_parts_add_up(gamma):
    loss = TaskLoss(gamma, torch.tensor([2.0, 3.0, 4.0]), torch.tensor([1.0, 0.5, 2.0]))
    logits = LOGITS.clone().requires_grad_()
    targets = TARGETS.clone()
    targets[:, 1] = IGNORED
    whole = loss(logits, targets)
    whole.backward()
    assert logits.grad is not None
    assert logits.grad[:, 1].tolist() == [0.0, 0.0]
    parts = [loss(LOGITS[i : i + 1], targets[i : i + 1], 4.0) for i in range(2)]
    assert torch.allclose(sum(parts, torch.zeros(())), whole)
    nothing = loss(logits, torch.full((2, 3), float(IGNORED)))
    nothing.backward()
    assert nothing.item() == 0.0


def test_balancing_is_negatives_over_positives_within_bounds():
    targets = np.array([[1, 0, 0]] + [[0, 0, 1]] * 3 + [[0, 0, -1]] * 40, np.int8)
    assert balancing_weight(targets).tolist() == [20.0, 20.0, 1.0]
    assert balancing_weight(targets[:4]).tolist() == pytest.approx([3.0, 4.0, 1.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0, "loss": "focal"}, r"optim\.gamma"),
        ({"gamma": 3.0}, r"optim\.gamma = 3\.0 with optim\.loss = 'bce'"),
        ({"label_weights": {"Mass": -1.0}}, r"optim\.label_weights\.Mass"),
        ({"label_weights": {"Mass": 0.0}}, r"optim\.label_weights\.Mass"),
    ],
)
def test_options_that_contradict_themselves(options, words):
    with pytest.raises(ConfigError, match=words):
        OptimSection(**options)


def test_a_weight_of_a_label_that_is_not_there():
    with pytest.raises(ConfigError, match="did you mean 'Hernia'"):
        TaskLoss.of(OptimSection(label_weights={"Hernai": 2.0}), LABELS, np.zeros((1, 3), np.int8))

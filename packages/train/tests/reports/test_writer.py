"""The loss is that of transformers on the report alone; writing needs neither cache nor company."""

import numpy as np
import peft
import pytest
import torch

from medqua.core import EntropyRouter, QuasarConfig
from medqua.core.adapter import regularisation, update_thresholds
from medqua.core.errors import ConfigError, ShapeError
from medqua.core.model.tiny import TinyArchitecture, build_tiny
from medqua.train.data.manifest import IGNORED
from medqua.train.reports.writer import report_inputs, report_loss, write_reports

REPORTS = ("No pleural effusion.", "Cardiomegaly is present. Possible pulmonary edema on the left.")
SMALL = TinyArchitecture(
    vision_depth=1, decoder_layers=2, hidden=32, heads=2, mlp=32, initializer_range=0.2
)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model, processor = build_tiny(SMALL, seed=0)
    config = QuasarConfig(n_qubits=2, max_depth=1, every=1, rank=4, gamma_init=0.5)
    rng = np.random.default_rng(0)
    images = list(rng.random((2, 56, 56), dtype=np.float32))
    adapted = peft.get_peft_model(model, config)
    inputs = report_inputs(processor, images, "Findings?", REPORTS)
    adapted.train()
    report_loss(adapted, inputs)
    update_thresholds(adapted)
    for module in adapted.modules():
        if isinstance(module, EntropyRouter):
            module.threshold_logit -= 1e-3  # it is one token's own score, which rounding may miss
    return adapted.eval(), processor, images, inputs


def test_the_loss_is_that_of_transformers_on_the_report_alone(parts):
    adapted, _, _, inputs = parts
    labels = inputs["labels"]
    whole = torch.full_like(inputs["input_ids"], -100)
    whole[:, -labels.shape[1] :] = labels.masked_fill(labels == IGNORED, -100)
    own = {name: value for name, value in inputs.items() if name != "labels"}
    with torch.no_grad():
        expected = adapted(**own, labels=whole).loss
        torch.testing.assert_close(report_loss(adapted, inputs), expected)


def test_padding_moves_no_loss(parts):
    adapted, processor, images, inputs = parts
    lengths = (inputs["labels"] != IGNORED).sum(1)
    with torch.no_grad():
        alone = [
            report_loss(adapted, report_inputs(processor, [image], "Findings?", [report]))
            for image, report in zip(images, REPORTS, strict=True)
        ]
        expected = (torch.stack(alone) * lengths).sum() / lengths.sum()
        torch.testing.assert_close(report_loss(adapted, inputs), expected)


def test_writing_is_the_same_without_cache_and_alone(parts):
    adapted, processor, images, _ = parts
    together = write_reports(adapted, processor, images, "Findings?", max_tokens=12)
    uncached = write_reports(
        adapted, processor, images, "Findings?", max_tokens=12, use_cache=False
    )
    alone = [write_reports(adapted, processor, [i], "Findings?", max_tokens=12)[0] for i in images]
    assert together == uncached == alone
    with adapted.disable_adapter():
        assert write_reports(adapted, processor, images, "Findings?", max_tokens=12) != together


def test_a_frozen_backbone_gets_no_gradient_and_the_adapter_does(parts):
    adapted, _, _, inputs = parts
    adapted.train()
    (report_loss(adapted, inputs) + regularisation(adapted)).backward()
    graded = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert graded == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert all("quasar_block" in name for name in graded)


def test_a_whole_model_learns_to_write_what_it_was_taught(parts):
    adapted, processor, images, inputs = parts
    adapted.train()
    whole = adapted.get_base_model().requires_grad_(True)
    optimiser = torch.optim.Adam(whole.parameters(), lr=5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        (report_loss(adapted, inputs) + regularisation(adapted)).backward()
        optimiser.step()
        update_thresholds(adapted)
    assert write_reports(adapted, processor, images, "Findings?") == list(REPORTS)


def test_what_does_not_fit_is_refused(parts):
    _, processor, images, _ = parts
    with pytest.raises(ShapeError, match="2 images with 1 reports"):
        report_inputs(processor, images, "", ["one"])
    with pytest.raises(ConfigError, match="max_tokens = 0"):
        report_inputs(processor, images, "", REPORTS, max_tokens=0)
    cut = report_inputs(processor, images, "", REPORTS, max_tokens=3)
    assert cut["labels"].shape == (2, 3)

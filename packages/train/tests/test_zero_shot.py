import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from medqua.core.errors import BackboneError, ConfigError, ShapeError
from medqua.core.findings.labels import CHEXPERT, NIH
from medqua.core.model.backbone import Backbone, load_backbone
from medqua.core.vision.processor import QwenProcessor, build_inputs
from medqua.train.evaluation.zero_shot import ZeroShotClassifier, answer_tokens, phrase
from medqua.train.experiment.arms import find_arm
from medqua.train.recipe import load_recipe
from medqua.train.run import train
from medqua.train.sections import HeadSection

QUESTION = HeadSection().question
LABELS = ("Edema", "Pleural_Thickening", "No Finding")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("tiny-cxr")


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, 56, 56), dtype=np.float32))


@torch.no_grad()
def test_the_logit_is_that_of_yes_against_no(backbone: Backbone) -> None:
    classifier = ZeroShotClassifier(backbone, LABELS, 56, QUESTION)
    images = pictures(3)
    logits = classifier(**build_inputs(backbone.processor, images, "Whatever the prompt is."))
    assert logits.shape == (3, 3)
    tokenizer = backbone.processor.tokenizer
    yes = {tokenizer(text)["input_ids"][0] for text in ("Yes", "yes", "YES", " Yes", " yes")}
    no = {tokenizer(text)["input_ids"][0] for text in ("No", "no", "NO", " No", " no")}
    yes, no = yes - no, no - yes  # a lone space begins both
    for column, finding in enumerate(("edema", "pleural thickening")):
        asked = f"Is there {finding} in this chest radiograph? Answer yes or no."
        for row, image in enumerate(images):
            inputs = build_inputs(backbone.processor, [image], asked, image_first=True)
            chances = backbone.model(**inputs).logits[0, -1].double().softmax(-1)
            yes_mass, no_mass = (sum(float(chances[t]) for t in tokens) for tokens in (yes, no))
            expected = yes_mass / (yes_mass + no_mass)
            assert float(logits[row, column].sigmoid()) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_an_answer_depends_on_its_own_image_and_finding_alone(backbone: Backbone) -> None:
    images = pictures(4)
    inputs = build_inputs(backbone.processor, images, "")
    both = ZeroShotClassifier(backbone, LABELS[:2], 56, QUESTION)(**inputs)
    turned = ZeroShotClassifier(backbone, LABELS[1::-1], 56, QUESTION)(**inputs)
    torch.testing.assert_close(turned, both.flip(1))
    alone = ZeroShotClassifier(backbone, LABELS[:1], 56, QUESTION)
    last = alone(**build_inputs(backbone.processor, images[3:], ""))
    torch.testing.assert_close(last, both[3:, :1], atol=1e-5, rtol=1e-5)
    assert both[:, 0].std() > 0  # the image is seen


def test_answers_begin_by_tokens_of_their_own(backbone: Backbone) -> None:
    yes, no = answer_tokens(backbone)
    assert yes
    assert no
    assert not set(yes) & set(no)
    vocabulary = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    mute = QwenProcessor(backbone.processor.image_processor, vocabulary)
    with pytest.raises(BackboneError, match="by the same tokens"):
        answer_tokens(replace(backbone, processor=mute))


def test_every_known_label_makes_a_question_of_its_own() -> None:
    for labels in (CHEXPERT, NIH):
        phrases = [phrase(label.name) for label in labels]
        assert len(set(phrases)) == 14
        assert not any("_" in words or words != words.strip() for words in phrases)


def test_what_cannot_be_asked_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ZeroShotClassifier(backbone, (), 56, QUESTION)
    with pytest.raises(ConfigError, match=r"needed \{finding\}"):
        ZeroShotClassifier(backbone, LABELS, 56, "Anything wrong?")
    classifier = ZeroShotClassifier(backbone, LABELS, 56, QUESTION)
    with pytest.raises(ShapeError, match="no input_ids"):
        classifier(pixel_values=torch.zeros(1))
    larger = [np.zeros((84, 84), np.float32)]
    with pytest.raises(ShapeError, match="images of 9 visual tokens for questions made for 4"):
        classifier(**build_inputs(backbone.processor, larger, ""))


def test_a_zero_shot_run_writes_what_other_runs_write_but_a_bundle(
    small: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    arm = (*find_arm("zero_shot").overrides, "evaluation.bootstrap=20", f"data.root={images}")
    recipe = load_recipe("folder", [*small, *arm])
    with (tmp_path / "log").open("w") as log:
        metrics = train(recipe, tmp_path / "run", Console(file=log, width=200))
    spoken = (tmp_path / "log").read_text()
    assert "Training nothing" in spoken
    assert "its answers are chance" in spoken
    assert metrics["untrained"] is None
    assert metrics["test"]["per_label"]["Mass"]["auroc_ci95"] is not None
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.json", "run.json", "manifest.parquet", "predictions.parquet"} <= there
    assert not there & {"bundle", "trainer_state"}
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["questions"]
    assert asked[0] == "Is there a mass in this chest radiograph? Answer yes or no."
    rows = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    probability = 1 / (1 + np.exp(-rows["Mass logit"].to_numpy()))
    np.testing.assert_allclose(rows["Mass probability"].to_numpy(), probability, atol=1e-6)

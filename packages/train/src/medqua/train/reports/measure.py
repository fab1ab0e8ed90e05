"""What a writer of reports is measured by: agreement of labels, likelihood, and retrieval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int8

from medqua.core.adapter import QuasarLayer, classical_only
from medqua.core.findings.calibration import Calibration
from medqua.core.findings.labels import CHEXPERT_NAMES
from medqua.train.data.dataset import RadiographDataset
from medqua.train.data.manifest import IGNORED
from medqua.train.display import progress
from medqua.train.evaluation.predict import reset_routers, router_report
from medqua.train.reports.agreement import Agreement, agreement, baselines, gain
from medqua.train.reports.labeller import label_texts
from medqua.train.reports.likelihood import text_nats
from medqua.train.reports.prepare import Texts, collator_of, report_recipe, writer_of
from medqua.train.reports.retrieval import (
    Chance,
    Found,
    beyond_the_text,
    by_findings,
    chance,
    found,
)
from medqua.train.reports.trainer import Scored, score_reports
from medqua.train.reports.written import write_split
from medqua.train.stages.prepare import Run
from medqua.train.statistics.resampling import Interval, Resampling

BLIND = ("best_constant", "most_frequent", "random", "all_negative")
"""Who writes without looking."""

ENDPOINT = "best_constant"
"""Whom the writer has to beat: the comparison that is declared beforehand."""


@dataclass(frozen=True)
class Written:
    """The texts of the test split and what their labels are worth."""

    texts: Mapping[str, tuple[str, ...]]
    """Who wrote -> a text for each of N readable images; `reference` are their own reports."""
    agreements: Mapping[str, Agreement]
    """Of each writer, and of the classifier's labels, with the labels of the studies."""
    gains: Mapping[str, tuple[float, Interval]]
    """Macro F1 of what is written minus that of another."""
    rows: pl.DataFrame
    """The manifest's rows of the N images."""


@dataclass(frozen=True)
class Retrieved:
    """Reports of the test split found by their images."""

    images: int
    """Images that ask."""
    texts: int
    """Different texts in the gallery."""
    by_text: Mapping[str, Found]
    """Way of scoring -> ranks, a hit being the image's own text."""
    by_labels: Mapping[str, Found]
    """The same, a hit being any text with the labels of the own."""
    chance_text: Chance
    """Of a random order, for `by_text`."""
    chance_labels: Chance
    """For `by_labels`."""
    told: tuple[float, Interval]
    """Nats by which an image makes its own report likelier than the text is by itself, mean."""


@dataclass(frozen=True)
class Judged:
    """Everything that is measured."""

    written: Written
    """Texts."""
    retrieved: Retrieved
    """Retrieval."""
    scored: Scored
    """Test images and reports as the model scores them."""
    validated: Scored
    """The same of the validation split."""
    calibration: Calibration
    """Temperatures of the classifier, from validation."""
    routers: Mapping[str, object]
    """State of each adapted layer on the test split."""


def judge(run: Run, texts: Texts, nearest: Sequence[str]) -> Judged:
    """Write, score and rank the test split with the trained model.

    Args:
        run: With the trained model.
        texts: Its reports.
        nearest: For each test image, the report of the nearest training image.
    """
    evaluation = run.recipe.evaluation
    score = partial(
        score_reports,
        run.classifier,
        batch_size=evaluation.batch_size,
        workers=run.recipe.data.workers,
    )
    validated = score(run.splits["validate"], collator_of(run, texts, "validate"))
    reset_routers(run.classifier)
    scored = score(run.splits["test"], collator_of(run, texts, "test"))
    routers = router_report(run.classifier)
    known = validated.targets != IGNORED
    calibration = Calibration.identity(len(run.labels))
    if evaluation.calibrate and report_recipe(run.recipe).report.findings_weight:
        calibration = Calibration.fit(
            validated.logits, np.where(known, validated.targets, 0), known
        )
    plan = Resampling(evaluation.bootstrap, evaluation.confidence, run.recipe.run.seed)
    written = _written(run, texts, nearest, scored, validated, calibration, plan)
    retrieved = _retrieved(run, texts, calibration(scored.logits), plan)
    return Judged(written, retrieved, scored, validated, calibration, routers)


def _written(
    run: Run,
    texts: Texts,
    nearest: Sequence[str],
    scored: Scored,
    validated: Scored,
    calibration: Calibration,
    plan: Resampling,
) -> Written:
    section = report_recipe(run.recipe).report

    def write(what: str) -> list[str | None]:
        with progress(run.console, what, len(run.splits["test"])) as advance:
            return write_split(
                writer_of(run),
                run.splits["test"],
                run.collator,
                max_tokens=section.max_tokens,
                batch_size=run.recipe.evaluation.batch_size,
                advance=advance,
            )

    whole = write("Writing")
    rows = [i for i, text in enumerate(whole) if text is not None]
    wrote: dict[str, tuple[str, ...]] = {"written": tuple(text or "" for text in whole)}
    if has_path(run):
        with classical_only(run.classifier):
            wrote["classical_only"] = tuple(t or "" for t in write("Writing, classical only"))
    wrote["nearest"] = tuple(nearest)
    wrote |= baselines(texts.of["train"], len(whole), run.recipe.run.seed)
    wrote["reference"] = texts.of["test"]
    wrote = {name: tuple(column[i] for i in rows) for name, column in wrote.items()}
    columns = [CHEXPERT_NAMES.index(name) for name in run.labels]
    said: dict[str, Int8[np.ndarray, "n l"]] = {
        name: label_texts(column)[:, columns] for name, column in wrote.items()
    }
    if section.findings_weight:
        probabilities = calibration(scored.logits[rows])
        said["classifier"] = (probabilities >= 0.5).astype(np.int8)
        limits = best_thresholds(calibration(validated.logits), validated.targets)
        said["classifier_tuned"] = (probabilities >= limits).astype(np.int8)
    frame = texts.data.manifest.split("test")[rows]
    truth = scored.targets[rows]
    patients = patients_of(frame)
    return Written(
        wrote,
        {name: agreement(codes, truth, patients, plan) for name, codes in said.items()},
        {
            name: gain(said["written"], said[name], truth, patients, plan)
            for name in said
            if name not in ("written", "reference", "all_negative")
        },
        frame,
    )


def _retrieved(
    run: Run, texts: Texts, probabilities: Float64[np.ndarray, "n l"], plan: Resampling
) -> Retrieved:
    section, split = report_recipe(run.recipe).report, run.splits["test"]
    frame = texts.data.manifest.split("test")
    places = gallery([str(name) for name in frame["study_id"]], section.gallery)
    pictures = {i: picture for i in places if (picture := split.read(i)) is not None}
    asking = list(pictures)
    own = [texts.of["test"][i] for i in asking]
    shown = list(dict.fromkeys(own))
    hits_text = np.array([[text == mine for text in shown] for mine in own])
    codes = label_texts(shown)
    mine = codes[hits_text.argmax(axis=1)]
    hits_labels: Bool[np.ndarray, "n m"] = (mine[:, None] == codes[None]).all(axis=2)
    references = _references(run.splits["train"], section.references)

    def beyond(what: str) -> tuple[np.ndarray, np.ndarray]:
        with progress(run.console, what, len(asking) + len(references)) as advance:
            nats = partial(_nats, run, shown, section.max_tokens, advance)
            given = nats(list(pictures.values()))
            return -given, beyond_the_text(given, nats(references))

    scores: dict[str, np.ndarray] = {}
    scores["likelihood"], scores["beyond"] = beyond("Retrieval")
    if has_path(run):
        with classical_only(run.classifier):
            scores["classical_only"] = beyond("Retrieval, classical only")[1]
    if section.findings_weight:
        targets = run.splits["train"].targets
        known = np.maximum((targets != IGNORED).sum(axis=0), 1)
        columns = [CHEXPERT_NAMES.index(name) for name in run.labels]
        scores["findings"] = by_findings(
            probabilities[asking], (targets == 1).sum(axis=0) / known, codes[:, columns]
        )
    patients = patients_of(frame[asking])
    told = scores["beyond"][hits_text]
    drawn = np.full(plan.resamples, np.nan)
    for rows, weights in plan.weights(patients):
        drawn[rows] = weights @ told / weights.sum(axis=1)
    return Retrieved(
        len(asking),
        len(shown),
        {name: found(value, hits_text, patients, plan) for name, value in scores.items()},
        {name: found(value, hits_labels, patients, plan) for name, value in scores.items()},
        chance(hits_text),
        chance(hits_labels),
        (float(told.mean()), plan.percentiles(drawn)),
    )


def _nats(
    run: Run,
    texts: Sequence[str],
    max_tokens: int,
    advance: Callable[[int], None],
    images: Sequence[np.ndarray],
) -> Float64[np.ndarray, "n m"]:
    """-log p of the gallery's texts given some images."""
    return text_nats(
        writer_of(run),
        run.backbone.processor,
        images,
        run.recipe.backbone.prompt,
        texts,
        max_tokens=max_tokens,
        batch_size=run.recipe.evaluation.batch_size,
        advance=advance,
    )


def _references(train: RadiographDataset, count: int) -> list[np.ndarray]:
    """Images of the training split, evenly spaced, those that can be read."""
    places = np.unique(np.linspace(0, len(train) - 1, min(count, len(train))).astype(int))
    return [image for i in places if (image := train.read(int(i))) is not None]


def gallery(studies: Sequence[str], count: int) -> list[int]:
    """Places of the images of `count` studies, chosen by a hash of their name; 0 is all."""
    names = sorted(set(studies), key=lambda s: blake2b(s.encode(), digest_size=8).digest())
    chosen = set(names[:count] if count else names)
    return [place for place, study in enumerate(studies) if study in chosen]


def best_thresholds(
    probabilities: Float64[np.ndarray, "n l"], targets: Int8[np.ndarray, "n l"]
) -> Float64[np.ndarray, " l"]:
    """The threshold of each label with the best F1; above 1 where the label is never true."""
    result = np.full(targets.shape[1], 2.0)
    for i in range(targets.shape[1]):
        known = targets[:, i] != IGNORED
        p, y = probabilities[known, i], targets[known, i] == 1
        if y.any():
            order = np.argsort(-p, kind="stable")
            right = np.cumsum(y[order])
            f1 = 2 * right / (np.arange(1, len(p) + 1) + y.sum())
            last = np.append(p[order][1:] != p[order][:-1], True)  # equal values go together
            result[i] = p[order][int(np.where(last, f1, -1).argmax())]
    return result


def has_path(run: Run) -> bool:
    """Whether there is a Quasar adapter to take the bottleneck's path from."""
    return any(isinstance(module, QuasarLayer) for module in run.classifier.modules())


def patients_of(rows: pl.DataFrame) -> list[str]:
    """Whose each image is."""
    return [str(patient) for patient in rows["patient_id"]]

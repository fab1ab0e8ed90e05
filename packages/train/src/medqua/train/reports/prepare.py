"""The reports of a run's images, and what the model is asked for beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.core.model.classifier import MedQuaClassifier
from medqua.train.data.images import FolderStore
from medqua.train.data.manifest import SPLITS
from medqua.train.inputs import DataSet, make_splits
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe, ReportRecipe
from medqua.train.reports.read import read_reports
from medqua.train.reports.trainer import ReportCollator
from medqua.train.stages.prepare import Run


@dataclass(frozen=True)
class Texts:
    """The reports of a data set."""

    data: DataSet
    """The data set without the images of studies whose report has none of the sections."""
    of: Mapping[str, tuple[str, ...]]
    """Split -> the report of each of its images."""
    without: int
    """Studies that were left out."""


def report_recipe(recipe: Recipe) -> ReportRecipe:
    """The recipe as one with a `[report]` section.

    Raises:
        ConfigError: It has none, or trains nothing.
    """
    if not isinstance(recipe, ReportRecipe):
        raise ConfigError(f"the recipe {recipe.name} has no [report] section: start from `report`")
    if recipe.head.kind != "linear":
        raise ConfigError(f"head.kind = {recipe.head.kind!r} trains nothing: reports need linear")
    return recipe


def find_texts(recipe: ReportRecipe, data: DataSet) -> Texts:
    """Read the reports of a data set, on rank 0 for all.

    Raises:
        ConfigError: It is not told where they are.
        DataError: A report is missing or damaged, or a split is left without any.
    """
    store = data.store
    named = recipe.report.root or recipe.data.root
    if not named and not isinstance(store, FolderStore):
        raise ConfigError("report.root is not given: set it to where the reports are")
    root = Path(named).expanduser() if named or not isinstance(store, FolderStore) else store.root
    frame = data.manifest.frame
    texts, without = distributed.on_main(
        lambda: read_reports(root, frame, list(recipe.report.sections))
    )
    if without:
        left = frame.filter(pl.col("study_id").is_in(pl.Series(without).implode()))
        manifest = data.manifest.drop([str(name) for name in left["image"]])
        data = replace(data, manifest=manifest)
    of = {}
    for split in SPLITS:
        studies = data.manifest.frame.filter(pl.col("split") == split)["study_id"]
        if not len(studies):
            raise DataError(
                f"no report of {split} has {' or '.join(recipe.report.sections)}: choose other "
                "report.sections"
            )
        of[split] = tuple(texts[str(study)] for study in data.manifest.split(split)["study_id"])
    return Texts(data, of, len(without))


def with_reports(run: Run, texts: Texts) -> Run:
    """The run on images with reports, its collator that of training."""
    if texts.without:
        splits = make_splits(run.recipe, texts.data)
        run = replace(run, data=texts.data, splits=splits)
        run.say(f"{texts.without:,} studies are left out: no such section in their report")
        if distributed.is_main():
            texts.data.manifest.write(run.folder / "manifest.parquet")
    return replace(run, collator=collator_of(run, texts, "train"))


def writer_of(run: Run) -> MedQuaClassifier:
    """The model of a run that learns reports.

    Raises:
        ConfigError: Nothing is trained.
    """
    if not isinstance(run.classifier, MedQuaClassifier):
        raise ConfigError(f"head.kind = {run.recipe.head.kind!r} trains nothing: needed linear")
    return run.classifier


def collator_of(run: Run, texts: Texts, split: str) -> ReportCollator:
    """Samples of a split to batches with their reports."""
    section = report_recipe(run.recipe).report
    return ReportCollator(
        run.backbone.processor,
        run.recipe.backbone.prompt,
        reports=texts.of[split],
        max_tokens=section.max_tokens,
    )

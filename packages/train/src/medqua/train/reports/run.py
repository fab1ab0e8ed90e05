"""The stages of a run that learns to write reports: prepare, fit, judge, write."""

import time
from functools import partial
from pathlib import Path

import polars as pl
from rich.console import Console

from medqua.train.data.dataset import Collator
from medqua.train.display import progress
from medqua.train.evaluation.metrics import Figures
from medqua.train.model import count_parameters
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe
from medqua.train.record import RunState, peak_memory_mib, write_json
from medqua.train.reports.figures import figures_of
from medqua.train.reports.measure import Judged, judge
from medqua.train.reports.model import ReportWriter
from medqua.train.reports.page import draw_report, write_page
from medqua.train.reports.prepare import (
    Texts,
    collator_of,
    find_texts,
    report_recipe,
    with_reports,
    writer_of,
)
from medqua.train.reports.trainer import ReportTrainer
from medqua.train.reports.written import nearest_reports
from medqua.train.stages.fit import Fitted, fit
from medqua.train.stages.prepare import Run, describe_data, preload, prepare_run
from medqua.train.stages.write import make_bundle, write_skipped
from medqua.train.trackers.opened import open_trackers


def report_stages(
    recipe: Recipe, folder: Path, console: Console, state: RunState, resume: bool
) -> Figures:
    """Learn to write, judge what is written, and leave everything in the run folder.

    Args:
        recipe: With a `[report]` section.
        folder: The run folder.
        console: Where to speak.
        state: Of the run.
        resume: Go on from the last checkpoint.

    Returns:
        What `metrics.json` holds.

    Raises:
        MedQuaError: The data, the reports or the recipe do not do.
    """
    report_recipe(recipe)
    run = prepare_run(recipe, folder, console, state, resume=resume, model=ReportWriter)
    texts = find_texts(report_recipe(recipe), run.data)
    run = with_reports(run, texts)
    plain = Collator(run.backbone.processor, recipe.backbone.prompt)
    with open_trackers(recipe, folder, state, run.say) as trackers:
        state.write("running")
        if recipe.data.keep_in_memory:
            preload(run)
        train, test = run.splits["train"], run.splits["test"]
        with progress(console, "Nearest images", len(train) + len(test)) as advance:
            nearest = nearest_reports(
                writer_of(run),
                train,
                texts.of["train"],
                test,
                plain,
                batch_size=recipe.evaluation.batch_size,
                advance=advance,
            )
        judged_by = collator_of(run, texts, "validate")
        learner = partial(ReportTrainer, judged=judged_by)
        fitted = fit(run, state, trackers, resume=resume, trainer_of=learner)
        started = time.perf_counter()
        judged = judge(run, texts, nearest)
        seconds = time.perf_counter() - started
        metrics = _metrics(run, texts, fitted, judged, seconds)
        if distributed.is_main():
            _write(run, texts, fitted, judged, metrics, state)
            trackers.finish(metrics, folder / "plots" if "plots" in recipe.run.share else None)
        distributed.gather(None)
    return metrics


def _metrics(run: Run, texts: Texts, fitted: Fitted, judged: Judged, seconds: float) -> Figures:
    """What `metrics.json` holds."""
    trainable, total = count_parameters(run.classifier)
    unread = len(run.splits["test"]) - len(judged.written.rows)
    return figures_of(run.labels, judged) | {
        "router": dict(judged.routers),
        "trainable_parameters": trainable,
        "parameters": total,
        "training_seconds": fitted.seconds,
        "judging_seconds": seconds,
        "peak_memory_mib": peak_memory_mib(),
        "steps": fitted.steps,
        "data": {
            **describe_data(run.data),
            "skipped": len(run.data.absent) + len(fitted.skipped) + unread,
            "studies_without_section": texts.without,
        },
    }


def _write(
    run: Run, texts: Texts, fitted: Fitted, judged: Judged, metrics: Figures, state: RunState
) -> None:
    """Leave everything in the folder; the bundle last."""
    folder, written = run.folder, judged.written
    write_json(folder / "metrics.json", metrics)
    keys = written.rows.select("image", "patient_id", "study_id", "split")
    columns = [pl.Series(name, list(column)) for name, column in written.texts.items()]
    keys.with_columns(columns).write_parquet(folder / "reports.parquet")
    write_skipped(folder, [*run.data.absent, *fitted.skipped])
    if run.recipe.evaluation.plots:
        draw_report(folder / "plots", run.labels, judged, fitted.history)
    page = write_page(folder / "report.md", run, judged, metrics, state.record)
    if report_recipe(run.recipe).report.findings_weight:
        bundle = make_bundle(run, judged.calibration, page)
        where = bundle.save(folder / "bundle", overwrite=True)
        run.say(f"The model is in {where}, everything of the run in {folder}")
    else:
        run.say(
            "The findings' head was not trained, so there is no bundle; the weights are in "
            f"{folder / 'trainer_state'}"
        )

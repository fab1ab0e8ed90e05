"""The report of an experiment: Markdown, three figures, and every prediction as Parquet.

report.md               the declared endpoint first, then tables; what they mean, and what not
differences.png         every arm against the endpoint's first, with intervals
reliability.png         how often a finding is there, by what the two arms of the endpoint said
curve.png               macro AUROC by share of the training patients, where there are several
predictions.parquet     a row an image, arm, seed and share
comparisons.parquet     DeLong and McNemar of every arm, label by label
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from medqua.train.experiment.evidence import (
    ArmResult,
    Evidence,
    all_pairs,
    gather,
    predictions_table,
)
from medqua.train.experiment.grid import Cell
from medqua.train.experiment.section import ExperimentSection
from medqua.train.experiment.tables import (
    arms_section,
    costs_section,
    curve_lines,
    curve_section,
    differences_section,
    influence_section,
    labels_section,
    others,
    path_change,
)
from medqua.train.figures import draw_curve, draw_differences, draw_reliability
from medqua.train.markdown import conditions_text, number, p_value, percentages, signed, span
from medqua.train.record import read_json
from medqua.train.statistics.paired import Difference
from medqua.train.statistics.resampling import Resampling


def write_report(
    cells: Sequence[Cell],
    experiment: ExperimentSection,
    folder: Path,
    overrides: Sequence[str] = (),
) -> Path:
    """Write the report of finished cells.

    Args:
        cells: All of them done.
        experiment: What was declared.
        folder: Where it goes; files of an earlier report are replaced.
        overrides: What was set beside the recipe, `key=value`; told but for paths.

    Returns:
        `report.md`.

    Raises:
        DataError: A cell lacks its files, or cells are of different data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = Resampling(experiment.resamples, experiment.confidence)
    shares = sorted({cell.share for cell in cells})
    by_share = {
        share: gather([(c.arm, c.seed, c.folder) for c in cells if c.share == share], plan)
        for share in shares
    }
    full = by_share[shares[-1]]
    _tables(by_share, experiment, folder)
    names = others(full, experiment)
    draw_differences(
        folder / "differences.png",
        [(full.arms[name].arm.title, full.minus(experiment.arm, name)) for name in names],
        full.arms[experiment.arm].arm.title,
        experiment.confidence,
    )
    draw_reliability(
        folder / "reliability.png",
        [
            (full.arms[name].arm.title, full.arms[name].probabilities)
            for name in (experiment.arm, experiment.against)
        ],
        full.test.targets,
    )
    curve = ""
    if len(shares) > 1:
        draw_curve(folder / "curve.png", curve_lines(by_share))
        curve = curve_section(by_share)
    text = "\n".join(
        [
            f"Declared endpoint: {experiment.endpoint}.",
            "",
            "# Does the quantum path help?",
            "",
            *_data(full, cells, shares, overrides),
            *_endpoint(full, experiment),
            *arms_section(full),
            *differences_section(full, experiment),
            *influence_section(full),
            *costs_section(full),
            *labels_section(full, experiment),
            curve,
            *_reading(full),
        ]
    )
    path = folder / "report.md"
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path


def _tables(by_share: dict[float, Evidence], experiment: ExperimentSection, folder: Path) -> None:
    parts = [predictions_table(evidence, share) for share, evidence in by_share.items()]
    pl.concat(parts).write_parquet(folder / "predictions.parquet")
    pairs = [
        all_pairs(evidence, experiment.arm).with_columns(pl.lit(share).alias("share"))
        for share, evidence in by_share.items()
        if experiment.arm in evidence.arms
    ]
    pl.concat(pairs).write_parquet(folder / "comparisons.parquet")


def _data(
    full: Evidence, cells: Sequence[Cell], shares: Sequence[float], overrides: Sequence[str]
) -> list[str]:
    counts = ", ".join(
        f"{split} {row['images']:,} images of {row['patients']:,} patients"
        for split, row in full.test.counts.items()
    )
    recipe = cells[0].recipe
    seconds = sum(sum(result.seconds) for result in full.arms.values())
    synthetic = "PHANTOMS" in full.test.source
    seeds = max(len(result.seeds) for result in full.arms.values())
    whole = ""
    if len(shares) > 1:
        whole = f" on the whole training split (all shares: {percentages(shares)})"
    lines = [
        f"Data: {full.test.source}; {counts}. Backbone: `{recipe.backbone.source}`. "
        f"{len(full.arms)} arms of {seeds} seeds; {seconds / 60:.0f} minutes of runs{whole}.",
        "",
    ]
    if synthetic:
        lines += [
            "The images are phantoms: drawn, not taken of anybody. What helps on them need not "
            "help on radiographs.",
            "",
        ]
    sections = ("adapter.", "optim.", "backbone.", "image.")
    told = [key for key in overrides if key.startswith(sections)]
    if told:
        lines += [f"Set beside the recipe: {', '.join(f'`{key}`' for key in told)}.", ""]
    lines += [made_of(cells), ""]
    if recipe.data.train_on or recipe.data.test_on:
        trained, tested = map(conditions_text, (recipe.data.train_on, recipe.data.test_on))
        lines += [
            f"Cross-site: trained and calibrated on {trained}, tested on "
            f"{tested}. The calibration is that of the training site.",
            "",
        ]
    return lines


def made_of(cells: Sequence[Cell]) -> str:
    """When, where and with what the cells were run; everything that differs among them is told."""
    runs = [read_json(cell.folder / "run.json") for cell in cells]
    days = sorted({str(run["started"])[:10] for run in runs})
    machines = sorted({str(run["device"]["name"]) for run in runs})
    commits = sorted({str(run["git_commit"])[:10] for run in runs})
    versions = [
        f"{name} {', '.join(sorted({str(run['versions'][name]) for run in runs}))}"
        for name in ("python", "torch", "transformers", "peft", "medqua-train")
    ]
    return (
        f"Run {' to '.join(dict.fromkeys((days[0], days[-1])))} on {'; '.join(machines)}, at "
        f"commit {', '.join(commits)}, with {', '.join(versions)}."
    )


def _endpoint(full: Evidence, experiment: ExperimentSection) -> list[str]:
    found = full.minus(experiment.arm, experiment.against)
    first, second = (full.arms[name] for name in (experiment.arm, experiment.against))
    sizes = [int(result.cost("trainable_parameters")) for result in (first, second)]
    return [
        "## The endpoint",
        "",
        f"{first.arm.title} minus {second.arm.title}: **{signed(found.estimate)}**, "
        f"{experiment.confidence:.0%} interval {span(found.interval)} over patients (seeds as "
        f"they are), {span(found.seeds_interval)} over patients and seeds; p = {p_value(found.p)}. "
        f"Trainable parameters: {sizes[0]:,} and {sizes[1]:,}.",
        "",
        _verdict(found, first.arm.title, second.arm.title, experiment.confidence),
        *_reach(found, first),
        "",
    ]


def _reach(found: Difference, first: ArmResult) -> list[str]:
    """Whether the endpoint could have found anything, where it found nothing."""
    change, bounds = path_change(first), found.interval.bounds
    if change is None or change > 1e-3 or bounds is None or not bounds[0] <= 0 <= bounds[1]:
        return []
    return [
        "",
        "It could hardly have been otherwise: taking the routed path away from the trained "
        f"{first.arm.title} changes a probability by {change:.1e} on average. Training left that "
        "path next to nothing to do, whatever stands in it, so this is no evidence about circuits.",
    ]


def _verdict(found: Difference, first: str, second: str, confidence: float) -> str:
    """The endpoint in a sentence that does not say more than the interval."""
    bounds = found.interval.bounds
    if bounds is None:
        return f"No interval: {found.interval.reason}. Nothing can be said."
    wide = found.seeds_interval.bounds or bounds
    if bounds == (0.0, 0.0):
        return f"{first} and {second} rank the images alike in every resample."
    if bounds[0] <= 0 <= bounds[1]:
        return (
            f"The interval holds 0: on these data no difference between {first} and {second} is "
            f"shown. What these data speak against, at {confidence:.0%}, are differences beyond "
            f"{signed(bounds[0])} and {signed(bounds[1])}."
        )
    better, worse = (first, second) if bounds[0] > 0 else (second, first)
    text = f"The interval excludes 0: on these patients {better} ranks better than {worse}."
    if wide[0] <= 0 <= wide[1]:
        text += " With seeds drawn again too it does not: another set of seeds might not show it."
    return text


def _reading(full: Evidence) -> list[str]:
    """What the paper's headline can mean, with this experiment's own baseline."""
    baseline = next(iter(full.arms.values())).mean("all_negative_accuracy")
    return [
        "## What an accuracy of 82.3 % can mean",
        "",
        "The paper's Table 1 has MedQua at 82.30 % and AUROC 0.81 on ChestMNIST, its fine-tuned "
        "baseline at 82.24 % and 0.78. The AUROCs are of the size that is published (0.77 for a "
        "ResNet-18, 0.82 at best). The accuracy is not MedMNIST's, the mean over labels at 0.5: a "
        "model that always says no reaches 0.947 there. Nor is it the share of images with all 14 "
        "labels right: always saying no reaches about 0.54 (the share of NIH images without a "
        "finding), and no published AUROC is near what 0.82 would take. Nor a mean of sensitivity "
        "and specificity: two normal distributions of equal width and AUROC 0.81 allow 0.73 at "
        "most. What it can be: the plain accuracy at lower thresholds, where rare findings are "
        "called at the price of false alarms; or that of another task made of the data (one label "
        "an image, normal against abnormal, balanced classes). The paper does not say which, so no "
        "figure here is held against it. On the test split of this report always saying no reaches "
        f"{number(baseline)}: an accuracy is worth what it is above that.",
        "",
        "## What this does not show",
        "",
        "Circuits of this size are evaluated exactly on a CPU: they are trigonometric polynomials, "
        "and no figure here is about quantum hardware or an advantage of it. Intervals are of this "
        "test split and training protocol; a hyperparameter search for each arm was not made. "
        "Labels are what the data set says.",
        "",
    ]

"""The report of an experiment: Markdown, three figures, and every prediction as Parquet.

report.md               the declared endpoint first, then tables; what they mean, and what not
differences.png         every arm against the endpoint's first, with intervals
reliability.png         how often a finding is there, by what the two arms of the endpoint said
curve.png               macro AUROC by share of the training patients, where there are several
predictions.parquet     a row an image, arm, seed and share
comparisons.parquet     DeLong and McNemar of every arm, label by label
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from medqua.train.evidence import ArmResult, Evidence, all_pairs, gather, predictions_table
from medqua.train.experiment import ExperimentSection
from medqua.train.figures import draw_curve, draw_differences, draw_reliability
from medqua.train.reproduce import Cell
from medqua.train.statistics.holm import holm
from medqua.train.statistics.paired import Difference
from medqua.train.statistics.resampling import Interval, Resampling


def write_report(cells: Sequence[Cell], experiment: ExperimentSection, folder: Path) -> Path:
    """Write the report of finished cells.

    Args:
        cells: All of them done.
        experiment: What was declared.
        folder: Where it goes; files of an earlier report are replaced.

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
    others = _others(full, experiment)
    draw_differences(
        folder / "differences.png",
        [(full.arms[name].arm.title, full.minus(experiment.arm, name)) for name in others],
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
        draw_curve(folder / "curve.png", _curve(by_share))
        curve = _curve_section(by_share)
    text = "\n".join(
        [
            f"Declared endpoint: {experiment.endpoint}.",
            "",
            "# Does the quantum path help?",
            "",
            *_data(full, cells, shares),
            *_endpoint(full, experiment),
            *_arms(full),
            *_differences(full, experiment),
            *_costs(full),
            *_labels(full, experiment),
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


def _data(full: Evidence, cells: Sequence[Cell], shares: Sequence[float]) -> list[str]:
    counts = ", ".join(
        f"{split} {row['images']:,} images of {row['patients']:,} patients"
        for split, row in full.test.counts.items()
    )
    recipe = cells[0].recipe
    seconds = sum(sum(result.seconds) for result in full.arms.values())
    synthetic = "PHANTOMS" in full.test.source
    seeds = max(len(result.seeds) for result in full.arms.values())
    whole = f" on the whole training split (all shares: {_list(shares)})" if len(shares) > 1 else ""
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
    if recipe.data.train_on or recipe.data.test_on:
        lines += [
            f"Cross-site: trained and calibrated on {_conditions(recipe.data.train_on)}, tested on "
            f"{_conditions(recipe.data.test_on)}. The calibration is that of the training site.",
            "",
        ]
    return lines


def _endpoint(full: Evidence, experiment: ExperimentSection) -> list[str]:
    found = full.minus(experiment.arm, experiment.against)
    first, second = (full.arms[name] for name in (experiment.arm, experiment.against))
    sizes = [int(result.cost("trainable_parameters")) for result in (first, second)]
    return [
        "## The endpoint",
        "",
        f"{first.arm.title} minus {second.arm.title}: **{_signed(found.estimate)}**, "
        f"{experiment.confidence:.0%} interval {_interval(found.interval)} over patients (seeds as "
        f"they are), {_interval(found.seeds_interval)} over patients and seeds; p = {_p(found.p)}. "
        f"Trainable parameters: {sizes[0]:,} and {sizes[1]:,}.",
        "",
        _verdict(found, first.arm.title, second.arm.title, experiment.confidence),
        "",
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
            f"{_signed(bounds[0])} and {_signed(bounds[1])}."
        )
    better, worse = (first, second) if bounds[0] > 0 else (second, first)
    text = f"The interval excludes 0: on these patients {better} ranks better than {worse}."
    if wide[0] <= 0 <= wide[1]:
        text += " With seeds drawn again too it does not: another set of seeds might not show it."
    return text


def _arms(full: Evidence) -> list[str]:
    baseline = next(iter(full.arms.values())).mean("all_negative_accuracy")
    rows = []
    for name, result in full.arms.items():
        calibrated = full.calibrated[name]
        rows.append(
            (
                result.arm.title,
                _with_deviation(result, "macro_auroc"),
                _with_deviation(result, "macro_auprc"),
                f"{_number(result.mean('accuracy'))} ({_number(baseline)})",
                f"{_number(calibrated.ece)} {_interval(calibrated.ece_interval)}",
                f"{_number(calibrated.brier)} {_interval(calibrated.brier_interval)}",
            )
        )
    return [
        "## Arms",
        "",
        "Test split; mean and standard deviation over seeds, intervals over patients. Accuracy is "
        "the mean over labels at probability 0.5; in brackets beside it, what a model gets that "
        "always says no. ECE is counted too high by small bins: its interval is of what it would "
        "be without that, and may lie below the figure.",
        "",
        *_table(
            ("arm", "macro AUROC", "macro AUPRC", "accuracy (all-negative)", "ECE", "Brier"), rows
        ),
    ]


def _differences(full: Evidence, experiment: ExperimentSection) -> list[str]:
    names = _others(full, experiment)
    found = [full.minus(experiment.arm, name) for name in names]
    adjusted = holm([one.p for one in found])
    rows = [
        (
            full.arms[name].arm.title,
            full.arms[name].arm.question,
            _signed(one.estimate),
            _interval(one.interval),
            _interval(one.seeds_interval),
            _p(one.p),
            _p(corrected),
        )
        for name, one, corrected in zip(names, found, adjusted, strict=True)
    ]
    title = full.arms[experiment.arm].arm.title
    return [
        f"## {title} minus each arm",
        "",
        f"Macro AUROC, paired over patients, {experiment.resamples:,} resamples. But for the "
        "endpoint these comparisons are secondary: read the Holm column, which corrects for their "
        "number.",
        "",
        "![differences](differences.png)",
        "",
        *_table(
            ("arm", "question", "difference", "over patients", "and seeds", "p", "p, Holm"), rows
        ),
    ]


def _costs(full: Evidence) -> list[str]:
    rows = [
        (
            result.arm.title,
            f"{int(result.cost('trainable_parameters')):,}",
            _number(result.routing("activation_ratio"), 3),
            _number(result.routing("mean_depth"), 2),
            f"{1000 * result.cost('seconds_per_image'):.1f}",
            f"{result.cost('training_seconds'):.0f}",
        )
        for result in full.arms.values()
    ]
    return [
        "## What it takes",
        "",
        "λ̂ is the share of tokens on the quantum path (aim: the recipe's `target_ratio`), depth "
        "the mean circuit layers of those; both on the test split. Times are wall time of one "
        "process beside others.",
        "",
        *_table(("arm", "trainable parameters", "λ̂", "depth", "ms an image", "training, s"), rows),
    ]


def _labels(full: Evidence, experiment: ExperimentSection) -> list[str]:
    first, second = (full.arms[name] for name in (experiment.arm, experiment.against))
    pair = full.pair(experiment.arm, experiment.against)
    rows = []
    for i, label in enumerate(full.test.labels):
        auroc, answers = pair.per_label[i], pair.answers[i]
        rows.append(
            (
                label,
                f"{int((full.test.targets[:, i] == 1).sum())}",
                *(_number(_label_mean(result, label)) for result in (first, second)),
                _signed(auroc.estimate),
                _interval(auroc.interval) if auroc.reason is None else auroc.reason,
                f"{_p(auroc.p)} / {_p(pair.adjusted[i])}",
                f"{answers.only_first} : {answers.only_second}",
                f"{_p(answers.mid_p)} / {_p(pair.answers_adjusted[i])}",
            )
        )
    return [
        f"## {first.arm.title} and {second.arm.title}, label by label",
        "",
        "DeLong's test of mean AUROC over seeds, clustered by patient; p values raw / after Holm "
        "over labels. McNemar's test (mid-p) of the answers at 0.5 of the mean probability over "
        "seeds: images that the one alone gets right : the other alone.",
        "",
        *_table(
            (
                *("label", "positives", first.arm.title, second.arm.title, "difference"),
                *("interval", "DeLong p", "right alone", "McNemar p"),
            ),
            rows,
        ),
        "![reliability](reliability.png)",
        "",
    ]


def _curve(by_share: dict[float, Evidence]) -> dict[str, list[tuple[float, float, float]]]:
    """Title -> (share, mean, deviation over seeds) of arms that are there at several shares."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for share, evidence in by_share.items():
        for result in evidence.arms.values():
            mean = result.mean("macro_auroc")
            if mean is not None:
                point = (share, mean, result.deviation("macro_auroc") or 0.0)
                lines.setdefault(result.arm.title, []).append(point)
    return {title: points for title, points in lines.items() if len(points) > 1}


def _curve_section(by_share: dict[float, Evidence]) -> str:
    shares = list(by_share)
    patients = [evidence.test.counts["train"]["patients"] for evidence in by_share.values()]
    rows = []
    for title, points in _curve(by_share).items():
        found = {share: f"{mean:.3f} ± {spread:.3f}" for share, mean, spread in points}
        rows.append((title, *(found.get(share, "") for share in shares)))
    head = [f"{share:.0%} ({n:,} patients)" for share, n in zip(shares, patients, strict=True)]
    return "\n".join(
        [
            "## With fewer patients",
            "",
            "Macro AUROC, mean and standard deviation over seeds. Training patients alone are "
            "fewer: the epoch and the temperatures are chosen on the whole validation split.",
            "",
            "![curve](curve.png)",
            "",
            *_table(("arm", *head), rows),
        ]
    )


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
        f"{_number(baseline)}: an accuracy is worth what it is above that.",
        "",
        "## What this does not show",
        "",
        "Circuits of this size are evaluated exactly on a CPU: they are trigonometric polynomials, "
        "and no figure here is about quantum hardware or an advantage of it. Intervals are of this "
        "test split and training protocol; a hyperparameter search for each arm was not made. "
        "Labels are what the data set says.",
        "",
    ]


def _others(full: Evidence, experiment: ExperimentSection) -> list[str]:
    """All arms but the first of the endpoint; the endpoint's second leads."""
    names = [name for name in full.arms if name not in (experiment.arm, experiment.against)]
    return [experiment.against, *names]


def _label_mean(result: ArmResult, label: str) -> float | None:
    found = [row["per_label"][label]["auroc"] for row in result.figures]
    return None if None in found else sum(found) / len(found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _with_deviation(result: ArmResult, name: str) -> str:
    spread = result.deviation(name)
    return _number(result.mean(name)) + ("" if spread is None else f" ± {spread:.4f}")


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _interval(interval: Interval) -> str:
    if interval.bounds is None:
        return interval.reason or "none"
    low, high = interval.bounds
    return f"[{low:+.4f}, {high:+.4f}]" if low < 0 else f"[{low:.4f}, {high:.4f}]"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _list(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _conditions(conditions: Sequence[str]) -> str:
    return " and ".join(f"`{one}`" for one in conditions) or "everything"

"""The tables of a report, each a list of Markdown lines under its heading."""

from collections.abc import Iterable

from medqua.train.experiment.evidence import ArmResult, Evidence
from medqua.train.experiment.section import ExperimentSection
from medqua.train.markdown import number, p_value, signed, span, table
from medqua.train.statistics.holm import holm


def arms_section(full: Evidence) -> list[str]:
    """What each arm reaches."""
    baseline = next(iter(full.arms.values())).mean("all_negative_accuracy")
    rows = []
    for name, result in full.arms.items():
        calibrated = full.calibrated[name]
        rows.append(
            (
                result.arm.title,
                _with_deviation(result, "macro_auroc"),
                _with_deviation(result, "macro_auprc"),
                f"{number(result.mean('accuracy'))} ({number(baseline)})",
                f"{number(calibrated.ece)} {span(calibrated.ece_interval)}",
                f"{number(calibrated.brier)} {span(calibrated.brier_interval)}",
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
        *table(
            ("arm", "macro AUROC", "macro AUPRC", "accuracy (all-negative)", "ECE", "Brier"), rows
        ),
    ]


def differences_section(full: Evidence, experiment: ExperimentSection) -> list[str]:
    """The endpoint's first arm against every other."""
    names = others(full, experiment)
    found = [full.minus(experiment.arm, name) for name in names]
    adjusted = ["declared", *map(p_value, holm([one.p for one in found[1:]]))]
    rows = [
        (
            full.arms[name].arm.title,
            full.arms[name].arm.question,
            signed(one.estimate),
            span(one.interval),
            span(one.seeds_interval),
            p_value(one.p),
            corrected,
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
        *table(
            ("arm", "question", "difference", "over patients", "and seeds", "p", "p, Holm"), rows
        ),
    ]


def costs_section(full: Evidence) -> list[str]:
    """Parameters, routing, time."""
    rows = [
        (
            result.arm.title,
            f"{int(result.cost('trainable_parameters')):,}",
            number(result.routing("activation_ratio"), 3),
            number(result.routing("mean_depth"), 2),
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
        *table(("arm", "trainable parameters", "λ̂", "depth", "ms an image", "training, s"), rows),
    ]


def path_change(result: ArmResult) -> float | None:
    """How much a probability changes without the routed path: the mean over images and seeds."""
    found = [run["classical_only"] for run in result.runs if run.get("classical_only")]
    return _mean(run["mean_probability_change"] for run in found)


def influence_section(full: Evidence) -> list[str]:
    """What the bottleneck's path does in each arm that has one."""
    rows = []
    for result in full.arms.values():
        found = [run["classical_only"] for run in result.runs if run.get("classical_only")]
        if not found:
            continue
        without = _mean(run["macro_auroc"] for run in found)
        whole = result.mean("macro_auroc")
        rows.append(
            (
                result.arm.title,
                number(whole),
                number(without),
                signed(None if whole is None or without is None else whole - without),
                f"{path_change(result) or 0.0:.1e}",
                f"{max(run['largest_probability_change'] for run in found):.1e}",
            )
        )
    if not rows:
        return []
    return [
        "## What the bottleneck does",
        "",
        "The same trained models, tested again as if no token had been routed: no circuit, or what "
        "stands in its place, is run. Where this changes next to nothing, arms that differ in the "
        "bottleneck alone cannot differ either, and their equality says nothing about circuits.",
        "",
        *table(
            (
                *("arm", "macro AUROC", "without the path", "difference"),
                *("mean change of a probability", "largest"),
            ),
            rows,
        ),
    ]


def labels_section(full: Evidence, experiment: ExperimentSection) -> list[str]:
    """The two arms of the endpoint, label by label."""
    first, second = (full.arms[name] for name in (experiment.arm, experiment.against))
    pair = full.pair(experiment.arm, experiment.against)
    rows = []
    for i, label in enumerate(full.test.labels):
        auroc, answers = pair.per_label[i], pair.answers[i]
        rows.append(
            (
                label,
                f"{int((full.test.targets[:, i] == 1).sum())}",
                *(number(_label_mean(result, label)) for result in (first, second)),
                signed(auroc.estimate),
                span(auroc.interval) if auroc.reason is None else auroc.reason,
                f"{p_value(auroc.p)} / {p_value(pair.adjusted[i])}",
                f"{answers.only_first} : {answers.only_second}",
                f"{p_value(answers.mid_p)} / {p_value(pair.answers_adjusted[i])}",
            )
        )
    return [
        f"## {first.arm.title} and {second.arm.title}, label by label",
        "",
        "DeLong's test of mean AUROC over seeds, clustered by patient; p values raw / after Holm "
        "over labels. McNemar's test (mid-p) of the answers at 0.5 of the mean probability over "
        "seeds: images that the one alone gets right : the other alone.",
        "",
        *table(
            (
                *("label", "positives", first.arm.title, second.arm.title, "difference"),
                *("interval", "DeLong p", "right alone", "McNemar p"),
            ),
            rows,
        ),
        "![reliability](reliability.png)",
        "",
    ]


def curve_lines(by_share: dict[float, Evidence]) -> dict[str, list[tuple[float, float, float]]]:
    """Title -> (share, mean, deviation over seeds) of arms that are there at several shares."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for share, evidence in by_share.items():
        for result in evidence.arms.values():
            mean = result.mean("macro_auroc")
            if mean is not None:
                point = (share, mean, result.deviation("macro_auroc") or 0.0)
                lines.setdefault(result.arm.title, []).append(point)
    return {title: points for title, points in lines.items() if len(points) > 1}


def curve_section(by_share: dict[float, Evidence]) -> str:
    """With fewer training patients."""
    shares = list(by_share)
    patients = [evidence.test.counts["train"]["patients"] for evidence in by_share.values()]
    rows = []
    for title, points in curve_lines(by_share).items():
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
            *table(("arm", *head), rows),
        ]
    )


def others(full: Evidence, experiment: ExperimentSection) -> list[str]:
    """All arms but the first of the endpoint; the endpoint's second leads."""
    names = [name for name in full.arms if name not in (experiment.arm, experiment.against)]
    return [experiment.against, *names]


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean over seeds; None if one has none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _label_mean(result: ArmResult, label: str) -> float | None:
    found = [row["per_label"][label]["auroc"] for row in result.figures]
    return None if None in found else sum(found) / len(found)


def _with_deviation(result: ArmResult, name: str) -> str:
    spread = result.deviation(name)
    return number(result.mean(name)) + ("" if spread is None else f" ± {spread:.4f}")

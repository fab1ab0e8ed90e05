"""Figures as a report's Markdown has them."""

from collections.abc import Iterable, Sequence

from medqua.train.statistics.resampling import Interval


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def number(value: float | None, digits: int = 4) -> str:
    """A figure; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """A difference, its sign always told."""
    return "–" if value is None else f"{round(value, 4) + 0.0:+.4f}"  # never -0.0000


def span(interval: Interval) -> str:
    """Bounds in brackets, or why there are none."""
    if interval.bounds is None:
        return interval.reason or "none"
    low, high = interval.bounds
    return f"[{low:+.4f}, {high:+.4f}]" if low < 0 else f"[{low:.4f}, {high:.4f}]"


def p_value(value: float | None) -> str:
    """A p value to three places."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def percentages(shares: Sequence[float]) -> str:
    """Shares as percentages."""
    return ", ".join(f"{share:.0%}" for share in shares)


def conditions_text(conditions: Sequence[str]) -> str:
    """What a split was chosen by."""
    return " and ".join(f"`{one}`" for one in conditions) or "everything"

"""A bar that tells how far a batch run is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from medqua.core.console import console


@contextmanager
def batch_progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar for the time of a context; what it yields is told files done and files found."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        task = progress.add_task("Reading", total=None)

        def tell(done: int, found: int) -> None:
            progress.update(task, completed=done, total=found)

        yield tell

"""What every MedQua command line shares: one console, one way to end on an error."""

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.markup import escape

from medqua.core.errors import MedQuaError

console = Console()
"""Where commands talk to people; results meant for machines go to stdout by `print`."""


def run(app: typer.Typer, argv: Sequence[str] | None = None) -> int:
    """Run a command line app and return its exit status.

    A `MedQuaError` is a user's mistake or a bad file: its message alone goes to stderr and the
    status is 2. With `--debug` among the arguments the traceback is shown instead. Any other
    exception is a defect and keeps its traceback.

    Args:
        app: The typer app.
        argv: Arguments without the program name; `sys.argv[1:]` by default.

    Returns:
        0 on success, 2 on a `MedQuaError` or wrong usage, 130 on Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        result = app([a for a in arguments if a != "--debug"], standalone_mode=False)
    except MedQuaError as error:
        if debug:
            raise
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # click's usage errors carry their own exit code and message
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        return int(code)
    return result if isinstance(result, int) else os.EX_OK

"""`python -m medqua.core.quantum.runtime`: one batch on every target usable here."""

import sys

from medqua.core.console import run
from medqua.core.quantum.runtime.report import app

if __name__ == "__main__":
    sys.exit(run(app))

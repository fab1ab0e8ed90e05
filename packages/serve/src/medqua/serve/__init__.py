"""Inference: the one path from files to findings."""

import medqua.core  # noqa: F401  # first of all: see `medqua.core.silence`

"""The DICOM viewer. It stands on `medqua.serve` alone."""

import medqua.core  # noqa: F401  # first of all: see `medqua.core.silence`

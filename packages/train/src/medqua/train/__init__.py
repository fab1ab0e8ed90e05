"""Fine-tuning: recipes, data sets, the trainer, and the evidence."""

import medqua.core  # noqa: F401  # first of all: see `medqua.core.silence`

"""The verbs of `medqua-train`, by what they are about."""

"""The stages of a run, each a module: prepare, fit, measure, write; data flows that way."""

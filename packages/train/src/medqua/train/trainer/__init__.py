"""Fitting: transformers' trainer with the paper's objective, its checkpoints, and when it stops."""

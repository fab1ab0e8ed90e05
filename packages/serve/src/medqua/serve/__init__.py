"""Inference: the one path from files to findings."""

"""Accepted work on disk, who answers it, and what goes out and comes in for it."""

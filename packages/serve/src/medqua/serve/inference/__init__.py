"""From pixels to findings: the model, its circuits, and where it looked."""

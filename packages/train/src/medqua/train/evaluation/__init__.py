"""From a trained model and a split to figures."""

"""Data sets: each becomes one manifest of images, patients, splits and labels."""

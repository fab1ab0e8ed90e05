"""Findings as DICOM objects: a report, a picture with them burnt in, a note on an image."""

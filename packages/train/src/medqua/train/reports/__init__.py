"""Reports: read, learned, written, judged by their labels, and found again."""

"""A search over recipe keys: its space, its trials, its report."""

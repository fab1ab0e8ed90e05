"""All arms over all seeds: what is compared, the cells, and the report."""

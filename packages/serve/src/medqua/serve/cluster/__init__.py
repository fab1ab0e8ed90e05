"""More than one machine, by Ray: an archive's files, and the service's replicas."""

"""An archive of files to one table, without a service."""

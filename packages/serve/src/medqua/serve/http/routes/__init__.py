"""What may be asked, a module a family of routes."""

"""The service: its app, what guards it, and the forms of what it takes and gives."""

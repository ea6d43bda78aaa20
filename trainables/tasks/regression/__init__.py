"""A number for each row."""

"""A cache node."""

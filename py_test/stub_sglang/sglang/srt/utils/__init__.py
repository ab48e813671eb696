"""Home of `network`."""

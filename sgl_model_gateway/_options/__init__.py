"""Behind `router_args`: from a table of options to flags, help and values."""

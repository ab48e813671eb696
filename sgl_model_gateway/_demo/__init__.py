"""Behind `demo`: the load."""

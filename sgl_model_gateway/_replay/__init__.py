"""Behind `replay`: a trace is read, sent to a gateway, and what came back is reported."""

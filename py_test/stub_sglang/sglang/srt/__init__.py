"""Home of the server."""

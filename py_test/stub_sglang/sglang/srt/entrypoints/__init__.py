"""Home of `http_server`."""

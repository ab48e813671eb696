"""The checks of `doctor`: `options`, `ports`, `machine`, `workers`; each returns a list of `finding.Finding`."""

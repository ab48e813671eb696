"""The checks of `doctor`: `options`, `ports`, `machine`, `issuer`, `workers`. Each is a list of `finding.Finding`."""

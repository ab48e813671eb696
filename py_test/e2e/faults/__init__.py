"""What the gateway does when workers, clients or the gateway itself fail: real processes, real signals."""

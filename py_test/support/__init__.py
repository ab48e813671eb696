"""What tests share: processes, gateways, workers, backends and clients. Fixtures for all tests are in `conftest.py`."""

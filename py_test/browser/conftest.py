"""Chromium, driven through playwright."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser that BROWSER names."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; see `make test-browser`")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=os.environ["BROWSER"], args=FLAGS)
        yield browser
        browser.close()

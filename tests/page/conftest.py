"""A daemon with the page for each module, and one Chromium for all that a process runs: its start takes long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.page.browser import Browser, browser
from tests.page.pages import Page, page


@pytest.fixture(scope="module")
def served() -> Iterator[Page]:
    with page() as found:
        yield found


@pytest.fixture(scope="session")
def one_chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium(one_chromium: Browser) -> Iterator[Browser]:
    """A Chromium that shows nothing yet."""
    one_chromium.dark(False)
    one_chromium.size(1280, 900)
    yield one_chromium
    one_chromium.leave()

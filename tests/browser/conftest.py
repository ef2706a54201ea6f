"""A real browser for tests of pages: headless Chromium, driven by Playwright's core, and what a page may not do in it.

Tests that ask for `browser` or `opened` are skipped by name where no Chromium is found: on the path as chromium,
chromium-browser or google-chrome, or as the environment variable MASKRCNN_CHROMIUM names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM_VARIABLE = "MASKRCNN_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass
class Opened:
    """A page and all that went wrong in it or left it.

    problems: errors and warnings of its console, errors of its scripts, requests that failed. requests: addresses asked
    for, but for data URLs.
    """

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """px by which the page is wider than its window; 0 for a page that only scrolls down."""
        wide: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wide


Open = Callable[..., Opened]


@pytest.fixture(scope="module")  # while it lasts, an event loop runs in this thread: tests elsewhere start their own
def browser() -> Iterator[Browser]:
    """One headless Chromium for the tests of a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    named = os.environ.get(CHROMIUM_VARIABLE)
    program = named or next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs Chromium: {', '.join(NAMES)} on the path, or {CHROMIUM_VARIABLE} set to its program")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """opened(url, width=1280, height=800, **options of a context) -> `Opened`; closed after the test."""
    contexts = []

    def opening(url: str, width: int = 1280, height: int = 800, **options: object) -> Opened:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)  # type: ignore[arg-type]
        contexts.append(context)
        seen = Opened(context.new_page())
        page = seen.page
        page.on("console", lambda m: seen.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.problems.append(str(error)))
        page.on("requestfailed", lambda request: seen.problems.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda r: None if r.url.startswith("data:") else seen.requests.append(r.url))
        page.goto(url)
        return seen

    yield opening
    for context in contexts:
        context.close()

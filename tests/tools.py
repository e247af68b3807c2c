"""What some tests want beside Python's packages: where it is missing they skip, and fail in continuous integration."""

import os
import shutil

import pytest
from playwright.sync_api import Browser, Error, Playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WANTED = "wanted, and not there: "


def missing(tool: str, command: str = "make test-tools") -> None:
    """End a test that wants a tool; command: what installs it."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{WANTED}{tool}; `{command}` brings it")


def need(tool: str, *programs: str) -> None:
    """End a test unless all the programs of a tool are installed."""
    if not all(map(shutil.which, programs)):
        missing(tool)


def launch_browser(playwright: Playwright) -> Browser:
    """CHROMIUM's, else one that is installed, else playwright's own."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    try:
        return playwright.chromium.launch(executable_path=found, args=arguments)
    except Error:
        if found:
            raise
        missing("a browser (Chromium)")

"""A real browser for tests of pages: Chromium without a window, where there is one."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "no-proxy-server", "disable-sync"]
FLAGS += ["disable-background-networking", "disable-component-update"]


@contextmanager
def started(profile: Path) -> "Iterator[Chrome]":
    """Starts a browser that keeps its console and its requests; skips the test where there is none.

    Args:
        profile: Folder for its files.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[test]'")
    if not CHROMIUM or not DRIVER:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def opened(browser: "Chrome", address: str, width: int, dark: bool = False) -> list[str]:
    """Opens a page at a width; nothing on its console.

    Returns:
        The addresses that it asked for, its own the first.
    """
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(address)
    said = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not [entry for entry in said if "favicon.ico" not in entry["message"]], address  # which pdoc's pages lack
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))]


def hidden_images(browser: "Chrome") -> list[str]:
    """Lists the pictures of the open page that do not show."""
    script = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    return list(browser.execute_script(script))


def page_width(browser: "Chrome") -> int:
    """Measures how wide the open page is."""
    return int(browser.execute_script("return document.documentElement.scrollWidth"))

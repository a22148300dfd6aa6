"""The site of the documentation: it is built without a warning, its links lead somewhere, and a browser shows it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import hidden_images, page_width, started
from tests.browser import opened as browser_opened

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytest.importorskip("sphinx")
pytestmark = pytest.mark.whole
ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")]
PAGES = {path.relative_to(ROOT).with_suffix(".html").as_posix() for path in SOURCES}
LOADS = ("script", "link", "img", "iframe", "source")  # elements whose addresses a browser asks for by itself


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that others can link to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.loaded, self.places = set[str](), set[str](), {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                (self.loaded if tag in LOADS else self.links).add(value)
            if name in ("id", "name") and value:
                self.places.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it, but for the reference, which has one module here."""
    place = tmp_path_factory.mktemp("site")
    options = ("-q", "-W", "--keep-going", "-c", "docs", "-d", place / "trees")
    commands = (
        ("sphinx", *options, ".", place / "site"),
        ("pdoc", "--docformat", "google", "--output-directory", place / "site" / "api", "hf_mabprune.registry"),
    )
    for command in commands:
        words = [sys.executable, "-m", *map(str, command)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return place / "site"


def test_links_of_the_site_lead_to_pages_and_places_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html") if "api" not in path.parts}
    broken = []
    for path, page in pages.items():
        assert not [address for address in page.loaded if "//" in address], path
        for address in sorted(page.links | page.loaded):
            link = urlsplit(address)
            if link.scheme:
                continue
            there = (path.parent / unquote(link.path)).resolve() if link.path else path
            places = pages[there].places if there in pages else {unquote(link.fragment)}
            if not there.exists() or unquote(link.fragment) not in places:
                broken.append(f"{path.relative_to(site)} -> {address}")
    assert not broken
    assert {site / name for name in (*PAGES, "index.html")} <= pages.keys()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    with started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def opened(browser: "Chrome", address: str, width: int) -> None:
    """Opens a page at a width; nothing on its console, and no request to anywhere else."""
    asked = browser_opened(browser, address, width)
    assert {urlsplit(url).hostname for url in asked} == {"127.0.0.1"}, address


def navigation(browser: "Chrome", address: str) -> list[str]:
    """The pages of the navigation, in its order."""
    opened(browser, address, 1280)
    script = "return [...document.querySelectorAll('.sidebar-tree a.reference')].map(a => a.href.split('#')[0])"
    return list(dict.fromkeys(browser.execute_script(script)))


@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_of_the_navigation_shows(browser: "Chrome", address: str, width: int) -> None:
    """Its heading and its pictures are there, and nothing makes it wider than the window."""
    pages = [page for page in navigation(browser, address) if "/api/" not in page]
    assert {page.removeprefix(address) for page in pages} == PAGES - {"README.html"}
    for page in [address, *pages]:
        opened(browser, page, width)
        assert browser.execute_script("return document.querySelector('article h1').innerText.trim()"), page
        assert hidden_images(browser) == [], page
        assert page_width(browser) <= width, page


def test_the_reference_is_one_click_away(browser: "Chrome", address: str) -> None:
    reference = [page for page in navigation(browser, address) if "/api/" in page]
    assert len(reference) == 1
    browser.get(reference[0])
    assert "registry" in browser.page_source


def test_the_picture_of_the_rooms_is_seen(browser: "Chrome", address: str) -> None:
    opened(browser, f"{address}docs/architecture.html", 1280)
    size = "const b = document.querySelector('img[src*=rooms]').getBoundingClientRect(); return [b.width, b.height]"
    assert min(browser.execute_script(size)) > 300


def test_the_search_finds_a_word(browser: "Chrome", address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    opened(browser, f"{address}search.html?q=distillation", 1280)
    found = WebDriverWait(browser, 20).until(lambda seen: seen.find_elements(By.CSS_SELECTOR, "ul.search li a"))
    assert any("LOG" in (link.get_attribute("href") or "") for link in found)

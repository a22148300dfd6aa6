"""The page of a run, as HTML and in a real browser."""

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import yaml

from hf_mabprune.artifacts.page import MARK, headline, page_of
from hf_mabprune.artifacts.page_examples import Told
from hf_mabprune.artifacts.run_data import RunData
from hf_mabprune.config import check
from hf_mabprune.evaluation.figures import ModelFigures, SizeFigures
from hf_mabprune.evaluation.report import Report
from tests.artifacts.reports import config, figures, make_arms, make_examples, make_report
from tests.browser import hidden_images, opened, page_width, started

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

EVIL = '<script>alert(1)</script> <img src=http://x.example/a.png> & "quotes" \u202eback'
MOST = 2_000_000  # bytes


class Texts:
    """Test data whose texts are the same, and would like to be markup."""

    def place(self, example: int) -> str:
        return f"row {example}"

    def texts(self, example: int) -> list[tuple[str, str]]:
        return [("sentence", EVIL)]


def report(**changes: Any) -> Report:
    made = make_report()
    before = replace(made.before, latency_ms=10.2, behind=(-0.005, -0.02, 0.01))
    return replace(made, before=before, **changes)


def told(report: Report, **changes: Any) -> Told:
    given = {"examples": make_examples(), "data": cast(RunData, Texts()), "most": 5, **changes}
    return Told(report, make_arms(), config(), **given)


def three_sizes() -> list[Told]:
    """Sizes of one search, by parameters that are left."""
    fractions = (0.2, 0.3, 0.5)
    sizes = [
        SizeFigures(
            f"parameters-{part}", {"parameters": part}, "uniform", 10**8, 10**9, 0.9, (0.89, 0.91), 0.8, 5.0, 2.0
        )
        for part in fractions
    ]
    return [told(report(target={"parameters": part}, sizes=sizes)) for part in fractions]


def many_layers() -> Told:
    """A report of which some parts are missing and others large: 40 layers, 4,000 arms, no examples, no latency."""
    kept = {"neuron": {f"layers.{layer}.mlp.down_proj": (10, 64) for layer in range(40)}}
    bare = replace(report(kept=kept, random=[]), after=figures(float("nan"), 0.2), warnings=["the loss is <b>odd</b>"])
    bare = replace(bare, before=replace(bare.before, latency_ms=None, behind=None))
    arms = make_arms(("neuron",), layers=1)
    arms = arms.loc[np.arange(4000) % len(arms)].reset_index(drop=True)
    return Told(bare, arms, config())


class Outline(HTMLParser):
    """What a page loads, and its headings and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "img":
            self.pictures.append(given.get("alt") or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


def test_the_headline_says_what_it_cost() -> None:
    assert headline(report()) == (
        "30% of the FFN and attention parameters are gone; accuracy goes from 0.9240 to 0.9190 (-0.0050, 95% interval "
        "-0.0200 to 0.0100), and a forward pass is 2.00 times as fast."
    ).replace("to 0.0100", "to +0.0100")


@pytest.mark.parametrize("page", [[told(report())], three_sizes(), [many_layers()]], ids=["one", "several", "bare"])
def test_a_page_holds_all_that_it_needs_and_no_script(page: list[Told]) -> None:
    text = page_of(page)
    outline = Outline(text)
    assert len(text.encode()) < MOST and MARK in text[:1000]
    assert all(address.startswith(("data:", "#")) for address in outline.addresses)
    assert not {"script", "iframe", "object", "form", "base"} & set(outline.tags)
    assert outline.pictures and all(outline.pictures), "every picture says what it shows"
    levels = outline.headings
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), "no level is left out"


def test_a_criterion_alone_has_no_effects_to_draw() -> None:
    unpulled = make_arms().assign(pulls=0, mean=np.nan)
    text = page_of([replace(told(report()), arms=unpulled)])
    assert "None of 30 arms was pulled" in text and "<img" not in text


def test_figures_of_a_perplexity_are_written_as_exactly_as_it_is() -> None:
    def perplexity(value: float, **others: Any) -> ModelFigures:
        metrics = {"metrics": {"perplexity": value}, "intervals": {"perplexity": (value - 1, value + 1)}}
        return replace(report().before, **metrics, **others)

    made = report(task="causal_lm", main_metric="perplexity", greater_is_better=False, random=[])
    made = replace(made, before=perplexity(20.0, behind=(3.456, 2.0, 4.567)), after=perplexity(23.456, behind=None))
    assert "perplexity goes from 20.00 to 23.46 (+3.46, 95% interval +2.00 to +4.57)" in headline(made)


def test_texts_of_the_data_are_shown_as_they_are_and_never_as_markup() -> None:
    text = page_of([told(report())])
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "pass it on as you would the data" in text
    assert "<script" not in text and "<img src=http" not in text


def test_the_examples_that_changed_are_told_with_the_largest_first() -> None:
    task = make_report().task
    text = page_of([told(report())])
    assert task and "2 of 8 test examples are answered otherwise" in text
    assert "1 right answers were lost, 1 won" in text
    assert re.findall("row [0-9]+", text) == ["row 7", "row 0"]
    assert page_of([told(report(), most=1)]).count("row ") - text.count("row ") == -1


def test_no_text_is_there_where_none_is_wanted() -> None:
    text = page_of([told(report(), most=0, data=None)])
    assert "2 of 8 test examples are answered otherwise" in text and "None is shown, as asked" in text
    assert "alert" not in text and "pass it on" not in text


def test_why_there_are_no_texts_is_said() -> None:
    text = page_of([told(report(), data=None)], "/home/jo/data.csv is gone")
    assert "Their texts are missing: data.csv is gone" in text and "/home/jo" not in text


def test_a_run_without_stored_examples_has_a_page_all_the_same() -> None:
    text = page_of([many_layers()])
    assert "make it again with this version" in text and "<summary>40 layers</summary>" in text
    assert "the loss is &lt;b&gt;odd&lt;/b&gt;" in text


def test_no_local_path_is_in_it() -> None:
    settings = yaml.safe_load(config(model="/home/jo/models/bert"))
    settings["output"]["dir"] = "/home/jo/out"
    local = replace(told(report(model="/home/jo/models/bert")), config_yaml=check(settings).to_yaml())
    text = page_of([local])
    assert "<h1>bert, pruned</h1>" in text and "/home/jo" not in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Chrome]":
    with started(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = []
    for name, page in {"one": [told(report())], "several": three_sizes(), "bare": [many_layers()]}.items():
        written.append(folder / f"{name}.html")
        written[-1].write_text(page_of(page))
    return written


@pytest.mark.whole
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_browser_shows_the_page_and_asks_for_nothing(
    browser: "Chrome", pages: list[Path], width: int, dark: bool
) -> None:
    for page in pages:
        address = page.as_uri()
        assert opened(browser, address, width, dark) == [address], "nothing beside the page itself"
        assert browser.execute_script("return document.querySelector('h1').innerText.trim()"), page
        assert hidden_images(browser) == [], page
        assert page_width(browser) <= width, page
        background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") != dark


@pytest.mark.whole
def test_ink_stands_out_from_paper_by_night_and_by_day(browser: "Chrome", pages: list[Path]) -> None:
    """Every text that shows has a contrast of 4.5 or more, as WCAG 2.2 asks for (success criterion 1.4.3)."""
    script = """
    const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
    const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
        if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
    return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 &&
        n.textContent.trim())).map(e => { const pair = [light(getComputedStyle(e).color), light(behind(e))];
        return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.outerHTML.slice(0, 80)]; });
    """
    for dark in (False, True):
        for page in pages:
            opened(browser, page.as_uri(), 800, dark)
            seen = browser.execute_script(script)
            assert len(seen) > 20 and not [text for contrast, text in seen if contrast < 4.5]

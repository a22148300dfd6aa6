"""Names from outside in the cards: whatever they hold, they are shown as they are and change nothing around them."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_mabprune.artifacts.card import write_card, write_overview
from hf_mabprune.artifacts.markdown import code, fenced, text
from hf_mabprune.artifacts.plots import plain, save_figures
from hf_mabprune.evaluation.report import Report, figures_table
from tests.artifacts.reports import config, make_arms, make_report, report_of

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</details><!--",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/track.png)",
    "https://evil.example/x",
    "<https://evil.example>",
    "www.evil.example",
    "`code` ``more`",
    "a|b|c",
    "a\\|b\\",
    "line\n\n# heading\n---\n| a | b |",
    "```\n<b>out</b>\n```",
    "**bold** _it_ ~~gone~~",
    "&lt;b&gt; &#60;",
    "[ref]: https://evil.example\n[ref]",
    ": {yaml: [breaks",
    "'\"---\n...\n- x",
    "{{ config }}{% raw %}",
    "\u202ertl\u2066 \x1b[31mred\x00\x07",
    "$\\frac",
    "$x$ and $y^2$",
    "[red]red[/red] :smile:",
    "x" * 5000,
    "half \udc80 a character",
    "https://me:s3cretPW@evil.example/x?token=s3cretPW",
    "\u00e9\u4e2d\U0001f600",
    " ",
]
OURS = ("https://huggingface.co/", "figures/", "parameters-0.3/", "https://arxiv.org/abs/2606.07615")


def tokens(markdown: str) -> list[Token]:
    """Parses Markdown as GitHub does, and lists every token, inner ones too."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    return [inner for token in found for inner in (token, *(token.children or []))]


def cells(markdown: str) -> list[int]:
    """Counts the cells of every row of every table."""
    rows: list[int] = []
    for token in tokens(markdown):
        if token.type == "tr_open":
            rows.append(0)
        if token.type in ("td_open", "th_open"):
            rows[-1] += 1
    return rows


def structure(markdown: str) -> list[str]:
    """Lists what a text is made of, apart from the words: no more and no less whatever a name is."""
    inline = ("text", "code_inline", "inline", "text_special", "link_open", "link_close")
    return [token.type for token in tokens(markdown) if token.type not in inline]


def named(report: Report, name: str) -> Report:
    """A report whose every text is a name from outside."""
    after = {name: 0.9} | report.after.metrics
    low = {name: (0.8, 1.0)} | report.after.intervals
    figures = replace(report.after, metrics=after, intervals=low)
    return replace(
        report,
        model=name,
        dataset=name,
        architecture=name,
        layout_reason=f"auto: {name}",
        device=name,
        main_metric=name,
        before=figures,
        after=figures,
        random=[replace(draw, figures=figures) for draw in report.random],
        kept={"neuron": {name: (1, 2)}},
        search=replace(report.search, policy={"name": name, name: name}, reward=name, stopped_because=name),
        warnings=[name, f"{name} is odd"],
        versions={name: name},
    )


def check_plain(markdown: str) -> None:
    for token in tokens(markdown):
        if token.type == "html_block":
            assert token.content.startswith(("<details>\n<summary>", "</details>")), token.content
        assert token.type != "html_inline", token.content
        for target in (token.attrs.get("href"), token.attrs.get("src")):
            assert target is None or str(target).startswith(OURS), target
    assert "s3cretPW" not in markdown
    assert markdown.replace("\n", "").isprintable()


def card_of(name: str, folder: Path) -> tuple[str, str]:
    """Writes a card on which every name is the same; gives its block of YAML and the rest."""
    allowed = re.sub("[\0\ud800-\udfff]", "", name).strip() or "x"  # what a config can hold
    source = {"path": "json", "data_files": {"train": allowed, "test": [allowed]}}
    task = {"dataset": source, "splits": {"calibration": allowed, "test": allowed}, "columns": {allowed: allowed}}
    folder.mkdir(exist_ok=True)
    path = write_card(named(make_report(), name), config(model=f"./{allowed}", task=task), folder)
    _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return header, body


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:20])
def test_a_card_shows_names_as_they_are(name: str, tmp_path: Path) -> None:
    header, body = card_of(name, tmp_path / "nasty")
    plain_header, plain_body = card_of("two words", tmp_path / "plain")
    check_plain(body)
    assert structure(body) == structure(plain_body)
    assert cells(body) == cells(plain_body)
    assert set(yaml.safe_load(header)) - {"base_model", "base_model_relation"} == set(yaml.safe_load(plain_header))
    assert ModelCard.load(tmp_path / "nasty" / "README.md").data.library_name == "transformers"


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:20])
def test_an_overview_shows_names_as_they_are(name: str, tmp_path: Path) -> None:
    report = named(make_report(), name)
    text_of = write_overview([report, report], tmp_path).read_text(encoding="utf-8")
    check_plain(text_of)
    assert set(cells(text_of)) == {8} and len(cells(text_of)) == 4


@pytest.mark.parametrize("name", NASTY, ids=lambda name: ascii(name)[:20])
def test_a_figure_shows_names_as_they_are(name: str) -> None:
    assert "\n" not in plain(name) and len(plain(name)) <= 80
    figure = Figure()
    label = figure.text(0, 0, plain(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        FigureCanvasAgg(figure).draw()
    assert not label._preprocess_math(plain(name))[1], "no formula"


def test_figures_of_nasty_names_are_drawn(tmp_path: Path) -> None:
    arms = make_arms()
    arms["site"] = [f"{site}$\\frac{{<b>$" for site in arms["site"]]
    report = replace(report_of(arms), main_metric="accuracy")
    assert len(save_figures(replace(report, search=replace(report.search, reward="$\\x$")), arms, tmp_path)) == 3


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80) | st.lists(st.sampled_from([*NASTY, *"`|\\<>[]()!*_~#-+.:@&$ \n"])).map("".join))
def test_any_name_is_text(name: str) -> None:
    for shown in (text(name), code(name)):
        table = f"# {shown}\n\nsaid: {shown} {code(name)}.\n\n| a | b |\n| --- | --- |\n| {shown} | {shown} |\n"
        check_plain(table)
        assert cells(table) == [2, 2]
        kinds = {token.type for token in tokens(table)}
        assert not kinds & {"link_open", "image", "em_open", "strong_open", "s_open", "hardbreak", "fence", "hr"}


@settings(max_examples=100, deadline=None)
@given(st.text("`~ \n<b>x-", max_size=60))
def test_no_content_leaves_its_block(content: str) -> None:
    found = tokens(f"before\n\n{fenced(content, 'yaml')}\n\nafter")
    assert [token.type for token in found if token.type in ("fence", "paragraph_open")] == [
        "paragraph_open",
        "fence",
        "paragraph_open",
    ]


def test_names_that_need_nothing_stay_as_they_are() -> None:
    assert text("bert-base.v2 (local, 3 files)") == "bert-base.v2 (local, 3 files)"
    assert code("train[:10%]") == "`train[:10%]`" and code("a_b<c>") == "`a_b<c>`"


def test_names_in_a_console_are_no_markup() -> None:
    name = "[red]a[/red] :smile: [/x]"
    report = make_report()
    figures = replace(report.after, metrics={name: 0.5}, intervals={name: (0.4, 0.6)})
    assert "[/x]" in figures_table(name, figures) and ":smile:" in figures_table(name, figures)

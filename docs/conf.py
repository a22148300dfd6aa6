"""Makes a site of the pages as they lie in the repository: `make docs`, or `sphinx-build -c docs . build/site`.

The pages are the files that a repository shows, at the same places, so a link works in both. What a repository has no
need of, a table of contents, is added here.
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

CONTENTS = {  # page -> titled lists of the pages below it
    "README": {
        "Use": [
            "docs/README",
            "docs/tutorial",
            "docs/methods",
            "docs/targets",
            "docs/families",
            "docs/data",
            "docs/language_models",
            "docs/embeddings",
            "docs/report",
            "docs/places",
            "docs/sparsity",
            "docs/training",
            "docs/trust",
        ],
        "Understand": ["docs/architecture", "docs/science", "docs/components"],
        "Figures": [
            "docs/benchmark",
            "docs/tasks",
            "docs/paper_study",
            "docs/interpretability_study",
            "LOG",
            "examples/quickstart/README",
            "examples/training/README",
        ],
        "Change": ["CONTRIBUTING"],
    },
    "docs/benchmark": {"Tables": ["docs/benchmark/*"]},
}

project = "hf_mabprune"
root_doc = "README"
extensions = ["myst_parser"]
include_patterns = ["*.md", "docs/**.md", "examples/**/*.md"]
exclude_patterns = [".*", "build", "runs"]
templates_path = ["_templates"]
myst_heading_anchors = 4  # named as a repository's pages name them
highlight_language = "none"  # of blocks that name none
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/reference.html",
        "sidebar/scroll-end.html",
    ]
}


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts the lists of the pages below a page at its end, where only the navigation shows them."""
    for title, pages in CONTENTS.get(page, {}).items():
        listed = "\n".join(f"/{name}" for name in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {title}\n\n{listed}\n```\n"


def make_front_page(app: Sphinx, failure: Exception | None) -> None:
    """Gives the overview the name that a server looks for."""
    if not failure:
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("build-finished", make_front_page)

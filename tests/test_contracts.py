"""The import rules of `pyproject.toml` hold for files that nobody has listed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("importlinter")
ROOT = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(cache_dir=None))"


class Rule(NamedTuple):
    """A rule about an open folder, a component that lies in it, and a file that its components share."""

    name: str
    component: str
    shared: str


RULES = {
    "policies": Rule("One policy never imports another", "ucb1", "set_policy"),
    "effects/rewards": Rule("One reward never imports another", "kl", "base"),
    "criteria": Rule("One criterion never imports another", "obs", "statistics"),
    "search/rules": Rule("One removal rule never imports another", "single", "base"),
    "compensation": Rule("One compensation never imports another", "mask_tuning", "base"),
    "places": Rule("One place never imports another", "pipeline", "base"),
    "exports": Rule("One export never imports another", "onnx", "base"),
    "architectures": Rule("One architecture never imports another", "bert", "base"),
    "tasks": Rule("One task never imports another", "answer", "text_task"),
}


def broken(sources: Path) -> set[str]:
    """Names of the rules that the sources break."""
    done = subprocess.run([sys.executable, "-c", LINT], cwd=sources, capture_output=True, text=True)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    return set(re.findall(r"^(.*) BROKEN", done.stdout, re.M))


def test_a_new_file_may_import_what_is_shared_and_no_other_component(tmp_path: Path) -> None:
    for package in ("hf_mabprune", "research"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def add_files(imported: Callable[[Rule], str]) -> None:
        for folder, rule in RULES.items():
            package = f"hf_mabprune.{folder.replace('/', '.')}"
            (tmp_path / "hf_mabprune" / folder / "brand_new.py").write_text(f"import {package}.{imported(rule)}\n")

    add_files(lambda rule: rule.shared)
    assert broken(tmp_path) == set()
    add_files(lambda rule: rule.component)
    assert broken(tmp_path) == {rule.name for rule in RULES.values()}

"""Kind 12: names with markup in them stay names in the model card."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from tests.hostile.case import Case, Check, Done, Step, prune
from tests.hostile.mutations import EVIL, ODD_TEXTS, Random, odd_name, reseal
from tests.hostile.prepared import edit_yaml

HEADINGS = {
    "How to load it",
    "Before, after, and at random",
    "Sizes",
    "Figures",
    "How it was made",
    "Limits",
    "Training",
    "Recovery",
}
KEYS = {
    "library_name",
    "metrics",
    "pipeline_tag",
    "tags",
    "model-index",
    "base_model",
    "license",
    "datasets",
    "model_name",
    "base_model_relation",
}
MARKUP = [text for text in ODD_TEXTS if "CANARY" in text or "`" in text or EVIL in text or "7 * 7" in text]


def parses(text: str, where: str) -> str | None:
    """Says what is live markup in a card that the template does not have."""
    if not text.startswith("---\n"):
        front, body = {}, text
    else:
        head, _, body = text[4:].partition("\n---\n")
        try:
            front = yaml.safe_load(head)
        except yaml.YAMLError as error:
            return f"{where}: the metadata are no YAML ({str(error).splitlines()[0]})"
        if not isinstance(front, dict):
            return f"{where}: the metadata are no mapping"
    if unknown := set(front) - KEYS:
        return f"{where}: metadata with {min(unknown)}"
    if "CANARY" in str(front.get("tags")) + str(front.get("license")):
        return f"{where}: metadata with an injected value"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    flat = [child for token in tokens for child in [token, *(token.children or [])]]
    for token in flat:
        if token.type in ("html_block", "html_inline"):
            return f"{where}: live HTML {token.content.strip()[:60]!r}"
        address = token.attrs.get("href") or token.attrs.get("src") or ""
        if EVIL in str(address) or "javascript" in str(address):
            return f"{where}: a live {'image' if token.type == 'image' else 'link'} to {address}"
    for opening, inline in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        if opening.tag != "h1" and inline.content not in HEADINGS and "sizes from one search" not in inline.content:
            return f"{where}: a heading {inline.content[:60]!r}"
    if sum(token.type == "heading_open" and token.tag == "h1" for token in tokens) != 1:
        return f"{where}: {sum(token.type == 'heading_open' and token.tag == 'h1' for token in tokens)} titles"
    loading = [token for token in tokens if token.type == "fence" and token.info.strip() == "python"]
    for block in loading:
        try:
            compile(block.content, where, "exec")
        except (SyntaxError, ValueError):
            return f"{where}: the loading code is no Python"
        if any(
            line
            and not line.startswith(("import ", "from ", "checkpoint = ", "model = ", "tokenizer = ", "processor = "))
            for line in block.content.splitlines()
        ):
            return f"{where}: the loading code has more lines"
    for opening, text in pairwise(flat):
        if opening.type in ("strong_open", "s_open", "em_open") and "CANARY" in text.content:
            return f"{where}: live emphasis"
    return None


def cards_parse(done: Done) -> str | None:
    """All cards, on disk and published, have no markup but the template's."""
    cards = {str(path.relative_to(done.folder)): path.read_text() for path in done.folder.glob("out/**/README.md")}
    for repo, files in done.published.items():
        if "README.md" in files:
            cards[repo] = files["README.md"].decode()
    for where, text in cards.items():
        if fault := parses(text, where):
            return fault
    return None


CHECKS: tuple[Check, ...] = (cards_parse,)


def name_for_file(rng: Random) -> str:
    """Gives markup that a file name can hold."""
    return rng.choice(MARKUP).replace("/", "\u2215").strip()[:120] or odd_name(rng)


def config(settings: dict[str, Any], rng: Random) -> Any:
    """Gives what writes settings into the file."""
    return lambda folder: edit_yaml(folder / "run.yaml", settings)


def model_name(rng: Random) -> Case:
    """The folder of the model has markup in its name."""
    name = name_for_file(rng)

    def harm(folder: Path) -> None:
        (folder / "models/bert").rename(folder / "models" / name)
        edit_yaml(folder / "run.yaml", {"model.name": f"models/{name}"})

    return Case(f"model {name!r:.50}", (Step(prune(), expects="passes", reference="", checks=CHECKS),), harm=harm)


def data_name(rng: Random) -> Case:
    """Data files, columns or slices have markup in their names."""
    text, split = name_for_file(rng), rng.choice(["train", "validation", "test"])
    column = rng.choice(MARKUP)

    def harm(folder: Path) -> None:
        from datasets import Dataset

        source = folder / f"data/{split}.parquet"
        rows = Dataset.from_parquet(str(source), cache_dir=str(folder.parent / "tmp2")).to_dict()
        files = {each: f"data/{each}.parquet" for each in ("train", "validation", "test")}
        if which == 0:
            shutil.copy(source, folder / "data" / f"{text}.parquet")
            edit_yaml(folder / "run.yaml", {"task.dataset.data_files": files | {split: f"data/{text}.parquet"}})
        elif which == 1:
            for each in files.values():
                rows = Dataset.from_parquet(str(folder / each), cache_dir=str(folder.parent / "tmp2")).to_dict()
                Dataset.from_dict({column: rows["sentence"], "label": rows["label"]}).to_parquet(str(folder / each))
            edit_yaml(folder / "run.yaml", {"task.columns": {"text": column, "label": "label"}})
        else:
            renamed = {column: files["test"]} | {each: files[each] for each in ("train", "validation")}
            edit_yaml(folder / "run.yaml", {"task.dataset.data_files": renamed, "task.splits.test": column})

    which = rng.randrange(3)
    return Case(
        f"{('file', 'column', 'split')[which]} {text!r:.40} {column!r:.40}",
        (Step(prune(), expects="any", reference="", checks=CHECKS),),
        harm=harm,
    )


def labels(rng: Random) -> Case:
    """The labels of the model have markup in their names."""
    names = rng.sample(MARKUP, 2)

    def harm(folder: Path) -> None:
        path = folder / "models/bert/config.json"
        ids = {str(number): name for number, name in enumerate(names)}
        path.write_text(
            json.dumps(
                json.loads(path.read_text())
                | {"id2label": ids, "label2id": {name: int(number) for number, name in ids.items()}}
            )
        )

    return Case(f"labels {names!r:.60}", (Step(prune(), expects="any", reference="", checks=CHECKS),), harm=harm)


def settings(rng: Random) -> Case:
    """A free text of the settings has markup in it, or the name of the output."""
    text = rng.choice(MARKUP)
    key = rng.choice(
        ["task.prefix", "task.dataset.revision", "model.revision", "output.log_dir", "task.dataset.name", "output.dir"]
    )
    if key == "output.dir":
        text = f"out/{name_for_file(rng)}"
    return Case(
        f"{key} {text!r:.50}",
        (Step(prune(), expects="any", reference="", checks=CHECKS),),
        harm=config({key: text}, rng),
        own=("out", text, text.split("/")[0]),
    )


def published(rng: Random) -> Case:
    """A stored run with markup in its report or its settings is published."""
    text = rng.choice(MARKUP)
    key = rng.choice(
        [
            "model",
            "layout_reason",
            "task",
            "device",
            "main_metric",
            "stopped_because",
            "versions",
            "kept",
            "targets",
            "metric name",
            "config model",
            "config file",
            "config split",
            "config prefix",
            "card of the base",
        ]
    )

    seal = rng.randrange(2**31)

    def harm(folder: Path) -> None:
        report = folder / "run/mabprune/report.json"
        tree = json.loads(report.read_text())
        if key.startswith("config"):
            setting = {
                "config model": "model.name",
                "config file": "task.dataset.data_files.train",
                "config split": "task.splits.test",
                "config prefix": "task.prefix",
            }[key]
            edit_yaml(folder / "run/mabprune/config.yaml", {setting: text})
        elif key == "stopped_because":
            tree["search"]["stopped_because"] = text
        elif key == "versions":
            tree["versions"] = tree["versions"] | {text: text}
        elif key == "metric name":
            tree["after"]["metrics"][text] = 0.5
            tree["before"]["metrics"][text] = 0.5
        elif key == "card of the base":
            (folder / "models/bert/README.md").write_text(f"---\nlicense: {json.dumps(text)}\n---\n# x\n")
        elif key in ("kept", "targets"):
            tree["kept"] = (
                tree["kept"]
                if key == "targets"
                else json.loads(json.dumps(tree["kept"]).replace("neuron", "neuron CANARY<b>"))
            )
        else:
            tree[key] = text
        report.write_text(json.dumps(tree))
        reseal(folder / "run", Random(seal))

    step = Step(("push", "run", "me/model"), expects="any", checks=CHECKS)
    return Case(
        f"push, {key} {text!r:.50}", (step,), harm=harm, needs=("models/bert", "data", "run.yaml", "run"), own=()
    )


def licenses(rng: Random) -> Case:
    """License, base model or name of the repository, given to push."""
    text = rng.choice(MARKUP)
    words = rng.choice(
        [
            ("--license", text),
            ("--base_model", text),
            ("--revision", text),
            ("--license", "mit"),
            ("--base_model", "a/b"),
        ]
    )
    return Case(
        f"push {words!r:.50}",
        (Step(("push", "run", "me/model", *words), expects="any", checks=CHECKS),),
        needs=("models/bert", "data", "run.yaml", "run"),
        own=(),
    )


def sizes(rng: Random) -> Case:
    """The overview of several sizes."""
    name = name_for_file(rng)

    def harm(folder: Path) -> None:
        (folder / "models/bert").rename(folder / "models" / name)
        edit_yaml(folder / "sizes.yaml", {"model.name": f"models/{name}"})

    return Case(
        f"sizes of {name!r:.50}",
        (Step(prune(config="sizes.yaml"), expects="passes", reference="", checks=CHECKS),),
        harm=harm,
        needs=("models/bert", "data", "sizes.yaml"),
        figures=rng.random() < 0.3,
    )


def plugin_names(rng: Random) -> Case:
    """A plugin registers names with markup, and options that hold it."""
    text = rng.choice(MARKUP)
    code = (
        "from dataclasses import dataclass\nfrom hf_mabprune.policies.base import POLICIES, option\n"
        "from hf_mabprune.policies.uniform import Uniform\n"
        f"@POLICIES.register({text!r})\n@dataclass(kw_only=True)\nclass Mine(Uniform):\n    '''Mine.'''\n"
    )

    def harm(folder: Path) -> None:
        (folder / "mine.py").write_text(code)
        edit_yaml(folder / "run.yaml", {"search.policy": {"name": text}})

    return Case(
        f"policy {text!r:.50}",
        (Step(prune("--plugin", "./mine.py"), expects="any", reference="", checks=CHECKS),),
        harm=harm,
    )


THEMES = (
    model_name,
    data_name,
    labels,
    settings,
    published,
    licenses,
    model_name,
    published,
    sizes,
    plugin_names,
    data_name,
    published,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

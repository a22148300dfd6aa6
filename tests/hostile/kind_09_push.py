"""Kind 9: what does not load, or is not the checkpoint's, is not published."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.hostile.case import Case, Done, Expected, Step, one
from tests.hostile.mutations import PLACES, Random, edit_json, edit_yaml, harm_bytes, odd_name, reseal
from tests.hostile.planted import canary_code

NEEDS = ("models/bert", "models/llama", "data", "run.yaml", "run", "uniform")
SECRET, INSIDE = "PRIVATE-7f3a91c2", "whoever puts a file into the folder that is not hidden may want it published"


def nothing_made(done: Done) -> str | None:
    """A refusal leaves no repository behind."""
    return "refused, and a repository was made" if done.code and done.published else None


def nothing_private(done: Done) -> str | None:
    """Nothing from outside of the folder is published."""
    for files in done.published.values():
        for name, content in files.items():
            if SECRET.encode() in content:
                return f"published from outside of the folder: {name}"
    return None


def push(
    name: str,
    harm: Callable[[Path], Any],
    expects: Expected = "refused",
    folder: str = "run",
    seal: int = 0,
    **options: Any,
) -> Case:
    """A push of a harmed folder; where `seal` is a seed, its checksums may have been made anew, or be gone."""
    step = Step(
        ("push", folder, "me/model"), expects=expects, checks=(nothing_made, nothing_private), output="nowhere"
    )

    def harm_and_seal(place: Path) -> None:
        harm(place)
        if seal:
            reseal(place / folder, Random(seal))

    return Case(name, (step,), harm=harm_and_seal, needs=NEEDS, own=(), **options)


def weights_harmed(rng: Random) -> Case:
    """The weights are damaged."""
    seed, folder = rng.randrange(2**31), rng.choice(["run", "uniform"])
    seal = rng.choice([0, 0, seed])
    return push(
        "weights damaged",
        lambda place: harm_bytes(place / folder / "model.safetensors", Random(seed)),
        "any" if seal else "refused",
        folder,
        seal,
    )


def weights_of_another(rng: Random) -> Case:
    """The weights, or the config, are another model's."""
    file, source = rng.choice(
        [
            ("model.safetensors", "models/bert"),
            ("model.safetensors", "models/llama"),
            ("model.safetensors", "uniform"),
            ("config.json", "models/bert"),
            ("config.json", "models/llama"),
            ("config.json", "uniform"),
            ("tokenizer.json", "models/llama"),
            ("modeling_pruned.py", ""),
            ("mabprune/report.json", "uniform"),
            ("mabprune/config.yaml", "uniform"),
            ("mabprune/arms.parquet", "uniform"),
        ]
    )

    def harm(folder: Path) -> None:
        if source:
            shutil.copy(folder / source / file, folder / "run" / file)
        else:
            (folder / "run" / file).write_text("class MabprunedBert: pass\n")

    seal = rng.choice([0, rng.randrange(2**31)])
    known = "mabprune/" in file and seal
    return push(
        f"{file} of {source or 'nobody'}", harm, "any" if known or "tokenizer" in file else "refused", seal=seal
    )


def weights_edited(rng: Random) -> Case:
    """A tensor is missing, more, of another shape or precision, or not a number."""
    what, seed = rng.randrange(6), rng.randrange(2**31)

    def harm(folder: Path) -> None:
        path = folder / "run" / "model.safetensors"
        tensors = load_file(path)
        name = Random(seed).choice(sorted(name for name in tensors if what not in (2, 5) or tensors[name].ndim > 1))
        tensor = tensors[name]
        if what == 0:
            del tensors[name]
        elif what == 1:
            tensors["evil.weight"] = tensor.clone()
        elif what == 2:
            tensors[name] = tensor[..., :-1].contiguous()
        elif what == 3:
            tensors[name] = tensor * float("nan")
        elif what == 4:
            tensors[name] = tensor + 1
        else:
            tensors[name] = tensor.flatten()
        save_file(tensors, path, {"format": "pt"})

    seal = rng.choice([0, seed])
    return push(f"a tensor edited, {what}", harm, "any" if seal and what == 4 else "refused", seal=seal)


def file_lost(rng: Random) -> Case:
    """A file is missing or something else."""
    file = rng.choice(
        [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "modeling_pruned.py",
            "mabprune/report.json",
            "mabprune/config.yaml",
        ]
    )
    place, seed = rng.choice(PLACES), rng.randrange(2**31)
    if file == "tokenizer.json":

        def harm(folder: Path) -> None:
            for each in (folder / "run").glob("tokenizer*"):
                place(each, Random(seed))
    else:

        def harm(folder: Path) -> None:
            place(folder / "run" / file, Random(seed))

    return push(
        f"{file} {place.__name__}",
        harm,
        "any" if file.startswith("mabprune") or "_config" in file else "refused",
        seal=rng.choice([0, seed]),
    )


def modeling_file_tampered(rng: Random) -> Case:
    """The file that others will run is not the package's."""
    how = rng.randrange(4)

    def harm(folder: Path) -> None:
        file = folder / "run" / "modeling_pruned.py"
        text, code = file.read_text(), canary_code(folder, "modeling_pruned")
        file.write_text([text + code, code, text.replace("FORMAT = 2", "FORMAT = 3"), text + "\n# nothing\n"][how])

    return push(f"modeling_pruned.py tampered, {how}", harm, seal=rng.choice([0, rng.randrange(2**31)]))


def links(rng: Random) -> Case:
    """Links lead out of the folder."""
    where = rng.choice(
        [
            "notes.txt",
            "figures/x.png",
            "mabprune/notes.json",
            "model-00002-of-00002.safetensors",
            "LICENSE",
            "tokenizer_config.json",
            "README.md",
            "special_tokens_map.json",
            "mabprune/arms.parquet",
        ]
    )
    how = rng.randrange(4)

    def harm(folder: Path) -> None:
        private = folder / "private"
        private.mkdir()
        (private / "key").write_text(SECRET)
        link = folder / "run" / where
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        if how == 0:
            link.symlink_to(private / "key")
        elif how == 1:
            link.symlink_to(os.path.relpath(private / "key", link.parent))
        elif how == 2:
            (folder / "run" / "more").symlink_to(private)
            link.symlink_to("nowhere")
        else:
            shutil.rmtree(folder / "run" / "figures", ignore_errors=True)
            (folder / "run" / "figures").symlink_to(private)
            (private / "kept_widths.png").write_text(SECRET)

    return push(f"a link at {where}, {how}", harm, "any", seal=rng.choice([0, rng.randrange(2**31)]))


def strangers(rng: Random) -> Case:
    """Private files lie in the folder."""
    name = rng.choice(
        [
            ".env",
            ".git/config",
            ".ssh/id_rsa",
            "id_rsa",
            "secrets.json",
            ".netrc",
            "wandb/run.log",
            "notes/a.txt",
            ".hf/token",
            "train.csv",
            "x.lock",
            "nohup.out",
            "optimizer.pt",
            "figures/raw.csv",
            "mabprune/.cache/x",
            "__pycache__/x.pyc",
            odd_name(rng),
        ]
    )

    def harm(folder: Path) -> None:
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET if name.startswith(".") else INSIDE)

    return push(f"a private file {name!r:.30}", harm, "any", seal=rng.choice([0, rng.randrange(2**31)]))


def settings_edited(rng: Random) -> Case:
    """The report, the config or the plan are edited."""
    file, seed = (
        rng.choice(["mabprune/report.json", "mabprune/config.yaml", "config.json", "tokenizer_config.json"]),
        rng.randrange(2**31),
    )
    edit = edit_yaml if file.endswith("yaml") else edit_json
    return push(f"{file} edited", lambda folder: edit(folder / "run" / file, Random(seed)), "any", seal=seed)


def unknown_task(rng: Random) -> Case:
    """The card cannot be written."""
    key, value = rng.choice(
        [
            ("task", "evil"),
            ("task", None),
            ("model", None),
            ("before", {}),
            ("kept", []),
            ("layout", 7),
            ("main_metric", "evil"),
            ("after", None),
            ("random", None),
            ("seed", "x"),
            ("search", {}),
        ]
    )

    def harm(folder: Path) -> None:
        path = folder / "run" / "mabprune" / "report.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    seal = rng.choice([0, rng.randrange(2**31)])
    return push(f"report: {key} {value!r}", harm, "any" if seal else "refused", seal=seal)


def not_a_checkpoint(rng: Random) -> Case:
    """What is named is no checkpoint."""
    name = rng.choice(
        [
            "data",
            "run/mabprune",
            "nope",
            ".",
            "run.yaml",
            "run/model.safetensors",
            "models",
            "",
            "run/config.json",
            "http://evil.example",
            "~",
            "run/../data",
        ]
    )
    return one(f"push {name!r}", ("push", name, "me/model"), "refused", needs=NEEDS, own=(), checks=(nothing_made,))


def bad_names(rng: Random) -> Case:
    """The repository's name, license, base model or branch are none."""
    words = rng.choice(
        [
            ("a b",),
            ("me/x/y",),
            ("somebody/x",),
            ("me/" + "x" * 120,),
            ("me/model", "--base_model", "a b c"),
            ("me/model", "--license", "<b>"),
            ("me/model", "--license", "Not A License"),
            ("me/model", "--revision", ""),
            ("me/model", "--revision", "a b"),
            ("me/model", "--base_model", "http://evil.example/x"),
            ("",),
            ("me/..",),
            ("me/model", "--revision", "refs/pr/999"),
            ("me/model", "--license", "mit\ntags: [x]"),
            ("me/model", "--base_model", "../../x"),
            ("me/model", "--base_model", ""),
        ]
    )
    return one(
        f"push to {words!r:.60}", ("push", "run", *words), "any", needs=NEEDS, own=(), checks=(nothing_private,)
    )


THEMES = (
    weights_harmed,
    weights_of_another,
    weights_edited,
    file_lost,
    modeling_file_tampered,
    links,
    strangers,
    settings_edited,
    unknown_task,
    not_a_checkpoint,
    bad_names,
    links,
    weights_edited,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    yield push("an unharmed run", lambda folder: None, "passes")
    yield push("an unharmed run", lambda folder: None, "passes", folder="uniform")
    while True:
        for theme in THEMES:
            yield theme(rng)

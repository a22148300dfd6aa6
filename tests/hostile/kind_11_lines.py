"""Kind 11: whatever comes from outside and cannot be used is one line: settings, command lines, files, plugins."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.case import Case, one, prune
from tests.hostile.mutations import (
    ODD_TEXTS,
    ODD_VALUES,
    PLACES,
    Random,
    edit_json,
    edit_yaml,
    harm_bytes,
)
from tests.hostile.planted import canary_code

NEEDS = ("models/bert", "data", "run.yaml", "run")
ALL_DATA = ("models", "data", "run.yaml", "run")
KEYS = (
    "model",
    "model.name",
    "model.revision",
    "model.dtype",
    "model.save_dtype",
    "task",
    "task.type",
    "task.dataset",
    "task.dataset.path",
    "task.dataset.name",
    "task.dataset.data_files",
    "task.dataset.data_files.train",
    "task.columns",
    "task.columns.text",
    "task.columns.label",
    "task.splits",
    "task.splits.test",
    "task.splits.calibration",
    "task.batch_size",
    "task.max_length",
    "task.metrics",
    "task.evaluation_examples",
    "prune",
    "prune.arms",
    "prune.target",
    "prune.target.neurons",
    "prune.block_size",
    "prune.layout",
    "prune.round_to",
    "prune.auto_tolerance",
    "prune.min_heads",
    "search",
    "search.criterion",
    "search.policy",
    "search.rule",
    "search.reward",
    "search.rounds",
    "search.pulls_per_arm",
    "search.products",
    "search.arms_per_step",
    "compensation",
    "recovery",
    "output",
    "output.overwrite",
    "output.random_seeds",
    "output.log_with",
    "output.log_dir",
    "seed",
    "search.policy.name",
    "recovery.epochs",
    "recovery.stages",
    "recovery.lora",
    "compensation.name",
    "compensation.damping",
    "search.rule.moves",
    "",
)


def settings(rng: Random) -> Case:
    """A field of the YAML file is edited."""
    seed, command = rng.randrange(2**31), rng.choice(["prune", "plan", "plan"])

    def harm(folder: Path) -> None:
        for _ in range(Random(seed).randint(1, 3)):
            edit_yaml(folder / "run.yaml", Random(seed))

    return one(
        f"settings edited ({command})",
        (command, "--config", "run.yaml"),
        "any",
        harm=harm,
        own=("out", "out.state", "out.logs"),
    )


def overrides(rng: Random) -> Case:
    """An option on the command line has an odd value."""
    values = (
        [str(value) for value in ODD_VALUES]
        + list(ODD_TEXTS)
        + [
            "{",
            "[",
            "[1, [2]",
            "{a: 1, a: 2}",
            "!!set {a}",
            "&a [*a]",
            "2024-01-01",
            "0o17",
            "1_000",
            ".inf",
            "-.inf",
            ".nan",
            "yes",
            "off",
            "'",
            '"',
            "1:30",
            "<<: {}",
            "? a",
            "%",
            "@",
        ]
    )
    pairs = [(rng.choice(KEYS), rng.choice(values)) for _ in range(rng.randint(1, 2))]
    words = [word for key, value in pairs for word in rng.choice([(f"--{key}={value}",), (f"--{key}", value)])]
    command = rng.choice(["prune", "plan", "plan"])
    return one(
        f"{' '.join(words)!r:.70}",
        (command, "--config", "run.yaml", *words),
        "any",
        own=("out", "out.state", "out.logs"),
    )


def yaml_texts(rng: Random) -> Case:
    """A YAML file with something in it that YAML allows, or does not."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
        for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    more = rng.choice(
        [
            bomb,
            "a: &a {b: *a}\n",
            "model: {name: x}\n",
            "seed: 1\nseed: 2\n",
            "task:\n  batch_size: 8\n",
            "resume: true\n",
            "search: {rounds: true}\n",
            "seed: true\n",
            "<<: {seed: 1}\n",
            "<<: [1]\n",
            "? [a, b]\n: c\n",
            "? {a: b}\n: c\n",
            "1: 2\n",
            "null: 3\n",
            "!!python/object/apply:os.system ['touch {folder}/../canary/yaml']\n",
            "x: !!python/name:os.system\n",
            "x: !!python/object/new:os.system ['touch x']\n",
            "x: !evil y\n",
            "x: !!binary nope\n",
            "x: !!timestamp nope\n",
            "x: 2024-13-45\n",
            "--- \na: 1\n--- \nb: 2\n",
            "...\n",
            "\x00",
            "\x07",
            "\ufeff",
            "\t- x\n",
            "x: [" * 3000,
            "{" * 5000,
            "[" * 100000,
            "'" * 10000,
            "- " * 4000,
            "x: &x\n y: *x\n",
            "%YAML 9.9\n---\na: 1\n",
            "config: run.yaml\n",
            "config: [run.yaml]\n",
            "help: true\n",
            "x: " + "9" * 5000 + "\n",
            "seed: 0x" + "f" * 5000 + "\n",
            "output: {dir: out}\n",
            "? \n",
            "plugin: ./evil.py\n",
            "model.name: x\n",
            "__class__: x\n",
            "prune: {target: {neurons: 1e400}}\n",
            "seed: 1e3\n",
            "seed: 1_0\n",
            "seed: 010\n",
            "task: *nothing\n",
            "x: |\n" + " y\n" * 100000,
            "command: prune\n",
            "__path__: x\n",
            "search: &s {rounds: 1, policy: *s}\n",
        ]
    )
    how, command = rng.randrange(3), rng.choice(["prune", "plan"])

    def harm(folder: Path) -> None:
        path, added = folder / "run.yaml", more.replace("{folder}", str(folder))
        path.write_text([path.read_text() + added, added, added + path.read_text()][how])

    return one(f"YAML with {more[:50]!r}, {how}", (command, "--config", "run.yaml"), "any", harm=harm)


def encodings(rng: Random) -> Case:
    """A text file in another encoding, or not a text at all."""
    encoding = rng.choice(["utf-16", "latin-1", "utf-8-sig", "utf-32", "cp1252", "shift_jis"])
    file = rng.choice(
        [
            "run.yaml",
            "run/mabprune/config.yaml",
            "run/mabprune/report.json",
            "models/bert/config.json",
            "models/bert/tokenizer_config.json",
        ]
    )

    def harm(folder: Path) -> None:
        path = folder / file
        path.write_bytes(
            (path.read_text() + ("# é ü\n" if file.endswith("yaml") else "")).encode(encoding, errors="replace")
        )

    command = rng.choice(
        [
            prune(),
            ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out"),
            ("plan", "--config", "run.yaml"),
        ]
    )
    return one(f"{file} in {encoding} ({command[0]})", command, "any", harm=harm, needs=NEEDS)


def command_lines(rng: Random) -> Case:
    """A command line that is none."""
    odd = rng.choice(ODD_TEXTS).replace("\x00", "")
    command: tuple[str, ...] = rng.choice(
        [
            (),
            ("prnue",),
            (odd,),
            ("prune",),
            ("prune", odd),
            ("prune", "--config"),
            ("prune", "--config", ""),
            ("prune", "--config", "data"),
            ("prune", "--config", "run.yaml", "--config", "run.yaml"),
            ("prune", "--config", "/dev/null"),
            ("prune", "--config", "run.yaml", "--seed"),
            ("prune", "--config", "run.yaml", odd),
            ("prune", "--config", "run.yaml", "--" + odd),
            ("cut",),
            ("cut", "run"),
            ("cut", odd),
            ("cut", "run", "--target.parameters", odd),
            ("cut", "run", "--target", odd),
            ("evaluate",),
            ("evaluate", odd),
            ("evaluate", "data"),
            ("evaluate", "run", "--config", odd),
            ("evaluate", "run", "--config", "data/train.parquet"),
            ("push",),
            ("push", "run"),
            ("plan",),
            ("plan", "--config", "run.yaml", "--resume"),
            ("cut", "run", "--resume"),
            ("evaluate", "run", "--task.batch_size", odd),
            ("prune", "--plugin"),
            ("prune", "--plugin", odd, "--config", "run.yaml"),
            ("prune", "--config", "models/bert/model.safetensors"),
            ("prune", "--config", "run/model.safetensors"),
            ("evaluate", "models/bert"),
            ("evaluate", "models/bert", "--config", "run.yaml", odd),
            ("push", "run", "me/x", odd),
            ("push", "run", "me/x", "--revision"),
            ("cut", "run", "--target.parameters", "0.2", "--target.macs", "0.1"),
            ("cut", "run", "--target.neurons", "nan"),
            ("cut", "run", "--target.parameters", "[0.2"),
            ("-h",),
            ("--help",),
            ("prune", "--help"),
            ("cut", "--help"),
            ("--version",),
            ("prune", "--print_config"),
            ("prune", "--config", "run.yaml", "--print_config"),
            ("evaluate", "run", "--json", "--json"),
            ("verify",),
            ("verify", odd),
            ("verify", "run", "--base", odd),
            ("prune", "@run.yaml"),
            ("evaluate", "run", "--task.dataset.data_files", odd),
            ("evaluate", "run", "--model.name", "x"),
            ("evaluate", "run", "--seed", "x"),
        ]
    )
    return one(f"{command!r:.70}", command, "any", needs=NEEDS, own=("out", "out.state", "out.logs"))


def models_harmed(rng: Random) -> Case:
    """A file of a model is damaged or edited."""
    file, seed = (
        rng.choice(
            [
                "config.json",
                "config.json",
                "tokenizer.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "model.safetensors",
            ]
        ),
        rng.randrange(2**31),
    )
    edited = file.endswith("json") and rng.random() < 0.7
    how = rng.choice(PLACES) if rng.random() < 0.1 else edit_json if edited else harm_bytes
    command = rng.choice([("plan", "--config", "run.yaml"), ("plan", "--config", "run.yaml"), prune()])
    return one(
        f"{file} {how.__name__} ({command[0]})",
        command,
        "any",
        harm=lambda folder: how(folder / "models/bert" / file, Random(seed)),
    )


def models_broken(rng: Random) -> Case:
    """A model of the world that is broken in a way that has a name."""
    name = rng.choice(
        [
            "base_model",
            "two_heads",
            "regression",
            "few_words",
            "four_layers",
            "megatron",
            "headless",
            "misspelt",
            "mistyped",
            "odd_heads",
            "quantised",
            "third_layer",
            "wider",
            "multi_label",
            "other_padding",
            "both_ways",
            "no_padding",
            "no_config",
            "no_json",
            "adapter",
            "broken_tokenizer",
            "no_tokenizer",
            "no_weights",
            "truncated",
            "web_page",
            "no_classifier",
            "broken_bin",
        ]
    )
    command = rng.choice(["plan", "prune", "evaluate"])
    words = (
        ("evaluate", f"models/{name}", "--config", "run.yaml")
        if command == "evaluate"
        else (command, "--config", "run.yaml", "--model.name", f"models/{name}")
    )
    return one(f"models/{name} ({command})", words, "any", needs=ALL_DATA)


def rows(rng: Random) -> dict[str, list[Any]]:
    """Gives odd rows."""
    count = rng.choice([0, 1, 2, 8])
    values: list[Any] = rng.choice(
        [
            ["a b", ""],
            [None],
            [1],
            [1.5],
            [True],
            [b"a"],
            [["a", "b"]],
            [{"a": 1}],
            ["a\x00"],
            ["0"],
            [-1],
            [7],
            [float("nan")],
            [2**62],
            ["good"],
            ["1"],
            [[]],
            ["\ud83e\udd99"],
        ]
    )
    return {
        "sentence": ["a b c"] * count,
        "label": [0, 1] * (count // 2) + [0] * (count % 2),
        rng.choice(["sentence", "label", "more"]): (values * 8)[:count],
    }


def data_files(rng: Random) -> Case:
    """Data of another kind, damaged, or with odd rows."""
    kind, seed = rng.choice(["csv", "json", "parquet", "text", "arrow", "imagefolder"]), rng.randrange(2**31)
    split = rng.choice(["train", "validation", "test"])

    def harm(folder: Path) -> None:
        draw = Random(seed)
        path = folder / "data" / f"odd.{kind}"
        content = rows(draw)
        try:
            if kind == "csv":
                lines = ["sentence,label"] + [
                    f"{a},{b}" for a, b in zip(content["sentence"], content["label"], strict=False)
                ]
                text = draw.choice(["\n", "\r\n", ";\n"]).join(lines) + draw.choice(
                    ["", '\n"open', "\na,b,c,d", "\n\n\n", "\n\x00"]
                )
                path.write_bytes(text.encode(draw.choice(["utf-8", "utf-16", "latin-1"]), "replace"))
            elif kind == "json":
                body = [dict(zip(content, row, strict=False)) for row in zip(*content.values(), strict=False)]
                path.write_text(
                    draw.choice(
                        [
                            json.dumps(body, default=str),
                            "\n".join(json.dumps(each, default=str) for each in body),
                            "{",
                            "[1, 2]",
                            '{"a": [1, {"b": 2}]}',
                            "null",
                            '{"sentence": "a", "label": 0}\n{"sentence": 7, "label": []}\n',
                            "[" * 2000,
                            "\ufeff[]",
                        ]
                    )
                )
            elif kind == "parquet":
                from datasets import Dataset

                Dataset.from_dict(content).to_parquet(str(path))
            else:
                path.write_text("a b c\n")
        except (TypeError, ValueError, UnicodeError, OSError):  # no file can hold such rows
            path.write_bytes(b"PAR1")
        except Exception:
            path.write_bytes(b"PAR1PAR1")
        if draw.random() < 0.4 and path.stat().st_size:
            harm_bytes(path, draw)
        tree = yaml.safe_load((folder / "run.yaml").read_text())
        tree["task"]["dataset"] = {
            "path": kind,
            "data_files": {each: f"data/odd.{kind}" for each in ("train", "validation", "test")},
        }
        tree["task"]["splits"] = {"calibration": "train[:50%]", "validation": "train[50%:75%]", "test": "train[75%:]"}
        if kind == "parquet" and draw.random() < 0.7:
            files = {each: f"data/{each}.parquet" for each in ("train", "validation", "test")} | {
                split: "data/odd.parquet"
            }
            tree["task"]["dataset"]["data_files"], tree["task"]["splits"] = files, {"test": "test"}
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    command = rng.choice([("plan", "--config", "run.yaml"), prune()])
    return one(f"odd {kind} data ({command[0]})", command, "any", harm=harm)


def plugins(rng: Random) -> Case:
    """A plugin that fails; what the user names is run, and nothing else."""
    code = rng.choice(
        [
            "1 / 0",
            "raise KeyError('x')",
            "import nothing_there",
            "def f(:",
            "\x00",
            "raise SystemExit(3)",
            "raise BaseException('x')",
            "from hf_mabprune.policies.base import POLICIES\nPOLICIES.register('race')(object)",
            "assert False",
            "x = " + "(" * 300,
            "raise RecursionError",
            "from hf_mabprune.policies.base import POLICIES\nPOLICIES.register(7)(int)",
            "raise ValueError('a\\nb')",
            "from hf_mabprune.policies import nope",
            "import os; os.nothing",
            "exit()",
            "é = '\udcff'" if False else "lambda: (yield)",
        ]
    )
    name = rng.choice(["evil.py", "evil", "./evil.py", "evil.txt", "no/evil.py", "data", ""])

    def harm(folder: Path) -> None:
        (folder / "evil.py").write_text(code)
        (folder / "evil.txt").write_text(code)

    return one(f"plugin {name!r}: {code[:30]!r}", ("plan", "--config", "run.yaml", "--plugin", name), "any", harm=harm)


def stored_names(rng: Random) -> Case:
    """The settings of a stored run name plugins, scripts, metrics."""
    key, value = rng.choice(
        [
            ("task.metrics", ["./evil"]),
            ("search.policy", {"name": "evil"}),
            ("search.policy", "evil.py"),
            ("compensation", "evil"),
            ("task.type", "evil"),
            ("task.dataset.path", "./evil.py"),
            ("task.dataset.path", "./evil"),
            ("plugin", "./evil.py"),
            ("search.rule", {"name": "evil"}),
            ("model.name", "./evil"),
            ("output.log_with", ["evil"]),
        ]
    )
    command = rng.choice([("evaluate", "run"), ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out")])

    def harm(folder: Path) -> None:
        for path in ("evil.py", "evil/evil.py", "evil/__init__.py", "evil/modeling_evil.py"):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(canary_code(folder, path.replace("/", "-")))
        tree = yaml.safe_load((folder / "run/mabprune/config.yaml").read_text())
        *parts, last = key.split(".")
        part = tree
        for each in parts:
            part = part[each]
        part[last] = value
        (folder / "run/mabprune/config.yaml").write_text(yaml.safe_dump(tree))

    return one(f"a stored run names {key} {value} ({command[0]})", command, "any", harm=harm, needs=NEEDS)


def targets(rng: Random) -> Case:
    """A target that is out of reach, or contradicts the rest."""
    target = {
        name: rng.choice([0.01, 0.3, 0.9, 0.99, 1, 0, -1, [0.1, 0.2], [0.2, 0.1], [], "half"])
        for name in rng.sample(["neurons", "heads", "experts", "parameters", "macs"], rng.randint(1, 3))
    }
    words = (
        "--prune.layout",
        rng.choice(["uniform", "per_layer", "auto"]),
        "--prune.block_size",
        rng.choice(["1", "7", "8", "16", "48", "100"]),
    )
    command = rng.choice([("plan", "--config", "run.yaml"), ("plan", "--config", "run.yaml"), prune()])

    def harm(folder: Path) -> None:
        tree = yaml.safe_load((folder / "run.yaml").read_text())
        tree["prune"]["target"] = target
        (folder / "run.yaml").write_text(yaml.safe_dump(tree))

    return one(f"target {target}", (*command, *words), "any", harm=harm)


THEMES = (
    settings,
    overrides,
    yaml_texts,
    encodings,
    command_lines,
    models_harmed,
    models_broken,
    data_files,
    plugins,
    stored_names,
    targets,
    overrides,
    yaml_texts,
    command_lines,
    models_harmed,
    data_files,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

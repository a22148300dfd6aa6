"""Kind 8: models and data that are degenerate, and finite all the same."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tests.cli.world import SPLITS
from tests.hostile.case import Case, one, prune
from tests.hostile.mutations import Random

WORDS = (
    "not positive definite",
    "use float32",
    "singular",
    "cholesky",
    "linalg",
    "nan",
    "inf on",
    "division by zero",
    "mean of empty",
    "invalid value encountered",
    "overflow",
)
CRITERIA = (
    "magnitude",
    "random",
    "fisher",
    "fisher_rearranged",
    "flap",
    "kfac_obs",
    "minitron",
    "obs",
    "taylor",
    "wanda_sp",
    "activation_variation",
)
POLICIES = (
    "race",
    "ucb1",
    "thompson",
    "softmax",
    "exp3",
    "hedge",
    "epsilon_greedy",
    "lucb",
    "sequential_halving",
    "sweep",
    "uniform",
)
BLOCK = "encoder.layer.0."
Weights = dict[str, torch.Tensor]


def ways(rng: Random) -> tuple[str, ...]:
    """A way to choose, and to refit."""
    drawn = rng.random()
    if drawn < 0.35:
        way: tuple[str, ...] = ("--search.criterion", rng.choice(CRITERIA), "--search.rounds", "null")
    elif drawn < 0.7:
        way = ("--search.policy.name", rng.choice(POLICIES))
    else:
        way = ("--search.reward", rng.choice(["kl", "loss", "squared", "accuracy"]))
    if rng.random() < 0.3:
        way = (*way, "--compensation", rng.choice(["null", "mask_tuning", "least_squares"]))
    return way


def change(folder: Path, edit: Callable[[Weights], Any], model: str = "bert") -> None:
    """Changes the weights of a model."""
    path = folder / "models" / model / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def fill(tensors: Weights, words: tuple[str, ...], value: float, but: str = "nothing") -> None:
    """Sets tensors to a value whose names have one of the words."""
    for name, tensor in tensors.items():
        if any(word in name for word in words) and but not in name:
            tensor.fill_(value)


def copy_rows(tensors: Weights, words: tuple[str, ...]) -> None:
    """Makes all rows of tensors equal."""
    for name, tensor in tensors.items():
        if any(word in name for word in words):
            tensor[:] = tensor[:1].clone()


def models(rng: Random) -> Case:
    """A part of the model is dead, constant, doubled, tiny or large."""
    layer = rng.choice(["encoder.layer.0.", "encoder.layer.1.", "encoder.layer."])
    name, edit = rng.choice(
        [
            (
                "a dead FFN with biases",
                lambda t: fill(
                    t,
                    (
                        f"{layer}0.intermediate.dense.weight".replace(".0.0.", ".0."),
                        f"{layer}intermediate.dense.weight",
                        "intermediate.dense.weight",
                    ),
                    0,
                ),
            ),
            ("FFN outputs zero", lambda t: fill(t, ("output.dense.weight",), 0, "attention")),
            ("FFN all zero", lambda t: fill(t, ("intermediate.dense", ".output.dense"), 0)),
            ("value projections zero", lambda t: fill(t, ("self.value",), 0)),
            ("value weights zero, biases kept", lambda t: fill(t, ("self.value.weight",), 0)),
            ("query and key zero", lambda t: fill(t, ("self.query", "self.key"), 0)),
            ("attention outputs zero", lambda t: fill(t, ("attention.output.dense",), 0)),
            ("classifier zero", lambda t: fill(t, ("classifier",), 0)),
            ("embeddings zero", lambda t: fill(t, ("embeddings.",), 0)),
            ("norms zero", lambda t: fill(t, ("LayerNorm.weight",), 0)),
            ("all zero", lambda t: fill(t, ("",), 0)),
            ("all one", lambda t: fill(t, ("dense", "query", "key", "value"), 1)),
            ("all very small", lambda t: fill(t, ("dense", "classifier"), 1e-38)),
            ("denormal", lambda t: fill(t, ("output.dense",), 1e-42)),
            ("neurons doubled", lambda t: copy_rows(t, ("intermediate.dense",))),
            ("heads doubled", lambda t: copy_rows(t, ("self.query", "self.key", "self.value"))),
            ("words equal", lambda t: copy_rows(t, ("embeddings.",))),
            ("classes equal", lambda t: copy_rows(t, ("classifier",))),
            ("classifier large", lambda t: fill(t, ("classifier.bias",), 1e30)),
            ("classifier sure", lambda t: t["classifier.weight"].mul_(1e6)),
            ("FFN large", lambda t: t[next(n for n in t if "layer.0.output.dense.weight" in n)].mul_(1e12)),
            ("FFN never on", lambda t: fill(t, ("intermediate.dense.bias",), -1e4)),
            ("rank one", lambda t: [v.copy_(v[:, :1] @ v[:1]) for n, v in t.items() if "output.dense.weight" in n]),
        ]
    )
    return one(f"{name}", prune(*ways(rng)), "any", harm=lambda folder: change(folder, edit), forbidden=WORDS[:5])


def write(
    folder: Path, texts: dict[str, list[Any]], splits: tuple[str, ...] = SPLITS, labels: list[int] | None = None
) -> None:
    """Writes splits of given texts."""
    for split in splits:
        rows = texts[split] if split in texts else texts[""]
        content = {"sentence": rows, "label": (labels or [0, 1] * len(rows))[: len(rows)]}
        Dataset.from_dict(content).to_parquet(str(folder / "data" / f"{split}.parquet"))


def data(rng: Random) -> Case:
    """Rows that are empty, equal, few or very long."""
    splits = rng.choice([SPLITS, ("train",), ("test",), ("validation",), ("train", "validation")])
    count = rng.choice([1, 2, 3, 16, 48])
    name, texts = rng.choice(
        [
            ("empty texts", [""] * count),
            ("blank texts", [" \t\n"] * count),
            ("equal texts", ["a b c"] * count),
            ("unknown words", ["zzz qqq"] * count),
            ("one word", ["a"] * count),
            ("very long", ["a b " * 5000] * min(count, 3)),
            ("special tokens", ["[CLS] [SEP] [PAD] [MASK]"] * count),
            ("nul", ["a\x00b c"] * count),
            ("surrogates", ["\ufffe\uffff 🦙"] * count),
            ("one good", ["a b c"] + [""] * (count - 1)),
            ("one row", ["a b c"]),
            ("lengths apart", ["a", "a b " * 40] * (count // 2 + 1)),
            ("pads only", ["[PAD]"] * count),
        ]
    )
    # The three splits must not be one: a row apart tells them.
    own = {"train": [*texts, "a"], "validation": [*texts, "b"], "test": [*texts, "c"]}
    few = ("--task.batch_size", "1") if count < 16 else ()
    return one(
        f"{name} x {count} in {', '.join(splits)}",
        prune(*few, *ways(rng)),
        "any",
        harm=lambda folder: write(folder, own, splits),
        forbidden=WORDS[:5],
    )


def settings(rng: Random) -> Case:
    """Settings at the edge of what they may be."""
    words = rng.choice(
        [
            ("--task.max_length", "2"),
            ("--task.max_length", "3"),
            ("--task.batch_size", "1"),
            ("--task.batch_size", "100000"),
            ("--task.calibration_examples", "1"),
            ("--task.evaluation_examples", "1"),
            ("--task.calibration_examples", "2"),
            ("--search.pulls_per_arm", "0"),
            ("--search.pulls_per_arm", "0.01"),
            ("--search.pulls_per_arm", "1000"),
            ("--search.rounds", "50"),
            ("--prune.block_size", "48"),
            ("--prune.block_size", "1"),
            ("--prune.block_size", "47"),
            ("--output.random_seeds", "12"),
            ("--prune.min_heads", "3"),
            ("--prune.min_neurons", "47"),
            ("--prune.target", '{"neurons": 0.021}'),
            ("--prune.target", '{"heads": 0.75}'),
            ("--prune.target", '{"macs": 0.01}'),
            ("--prune.target", '{"parameters": 0.5639}'),
            ("--prune.round_to", "7"),
            ("--seed", str(2**32)),
            ("--seed", str(2**64)),
            ("--task.splits.validation", "validation[:1]"),
            ("--task.splits.test", "test[:1]"),
            ("--task.splits.calibration", "train[:1]"),
            ("--search.rounds", "1"),
            ("--task.max_broken_batches", "0"),
        ]
    )
    return one(" ".join(words), prune(*words, *ways(rng)), "any", forbidden=WORDS[:5])


def language(rng: Random) -> Case:
    """A language model, with documents that are short, empty or equal."""
    texts = rng.choice(
        [
            ["a b c d e f g h"] * 8,
            ["a"] * 40,
            ["", "a b c d e f g h i j"] * 6,
            ["a b c d e f g h " * 20],
            ["zzz"] * 30,
            ["a b c d"] * 3,
        ]
    )
    own = {"train": [*texts, "a"], "validation": [*texts, "b"], "test": [*texts, "c"]}
    length = rng.choice(["2", "3", "8", "64"])
    weights = rng.choice(
        [
            lambda t: None,
            lambda t: fill(t, ("v_proj",), 0),
            lambda t: fill(t, ("down_proj",), 0),
            lambda t: fill(t, ("lm_head", "embed_tokens"), 0),
            lambda t: fill(t, ("norm",), 0),
            lambda t: fill(t, ("gate_proj",), 0),
            lambda t: copy_rows(t, ("up_proj",)),
        ]
    )

    def harm(folder: Path) -> None:
        write(folder, own)
        change(folder, weights, "llama")

    return one(
        f"a language model, max_length {length}",
        prune("--task.max_length", length, *ways(rng), config="llama.yaml"),
        "any",
        harm=harm,
        needs=("models/llama", "data", "llama.yaml"),
        forbidden=WORDS[:5],
    )


def recovered(rng: Random) -> Case:
    """Training after a cut, on little or nothing."""
    recovery = {
        "epochs": rng.choice([0.01, 1.0]),
        **rng.choice([{}, {"learning_rate": 1e-30}, {"learning_rate": 10.0}]),
    }
    count = rng.choice([1, 2, 9])
    own = {split: [f"{letter} b"] * count for split, letter in zip(SPLITS, "abc", strict=True)}
    return one(
        f"recovery {recovery} on {count} rows",
        prune("--task.batch_size", "1", "--recovery", json.dumps(recovery)),
        "any",
        harm=lambda folder: write(folder, own),
        forbidden=WORDS[:5],
    )


THEMES = (models, data, settings, models, data, language, recovered, models)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

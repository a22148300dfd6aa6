"""Reports, settings and tables of arms of runs that nobody made, for what is written about runs."""

from typing import Any

import numpy as np
import pandas as pd

from hf_mabprune.config import check
from hf_mabprune.evaluation.figures import ModelFigures, RandomFigures, SearchFigures
from hf_mabprune.evaluation.report import Report

HUB = {"path": "nyu-mll/glue", "name": "sst2", "revision": "abc123"}


def figures(accuracy: float, loss: float, parameters: int = 70_000_000) -> ModelFigures:
    half_width = 0.01
    return ModelFigures(
        parameters=parameters,
        ffn_parameters=parameters // 2,
        attention_parameters=parameters // 4,
        macs=100 * parameters,
        loss=loss,
        kl=0.0123,
        metrics={"accuracy": accuracy, "f1": accuracy - 0.02},
        intervals={"accuracy": (accuracy - half_width, accuracy + half_width), "f1": (accuracy - 0.1, accuracy)},
        latency_ms=5.1,
        checkpoint_bytes=4 * parameters,
    )


SITES = {  # kind -> names of its sites, by the number of a layer
    "bert": {"neuron": "encoder.layer.{}.output.dense", "head": "encoder.layer.{}.attention.output.dense"},
    "mixtral": {"head": "layers.{}.self_attn.o_proj", "expert": "layers.{}.mlp.gate"},
}


def kept_in(model_type: str, **kinds: list[tuple[int, int]]) -> dict[str, dict[str, tuple[int, int]]]:
    """What a report keeps, of `neurons`, `heads` and `experts`, from layer 0 on."""
    return {
        kind.removesuffix("s"): {
            SITES[model_type][kind.removesuffix("s")].format(layer): counts for layer, counts in enumerate(layers)
        }
        for kind, layers in kinds.items()
    }


def make_report() -> Report:
    course = [{"number": 1, "removed": 4, "removed_fraction": 1.0, "pulls": 9216, "kl": 0.01, "loss": 0.3,
               "loss_before": 0.2, "seconds": 40.5}]  # fmt: skip
    return Report(
        model="textattack/bert-base-uncased-SST-2",
        architecture="bert",
        task="sequence_classification",
        dataset="nyu-mll/glue",
        layout="per_layer",
        layout_reason="asked for",
        target={"parameters": 0.3},
        seed=7,
        device="cpu",
        sequence_length=66,
        main_metric="accuracy",
        greater_is_better=True,
        before=figures(0.924, 0.21, parameters=100_000_000),
        after=figures(0.919, 0.23),
        random=[RandomFigures(0, figures(0.841, 0.45)), RandomFigures(1, figures(0.85, 0.41))],
        kept=kept_in("bert", neurons=[(512, 3072), (3072, 3072)], heads=[(12, 12), (5, 12)]),
        search=SearchFigures(
            {"name": "ucb1", "c": 0.5}, "kl", 2448, 9216, 19_500_000, 0, 41.25, 2, "target reached", course
        ),
        reload={"max_logit_difference": 2e-6},
        versions={"torch": "2.9.9", "transformers": "5.88.0"},
    )


def config(model: str = "textattack/bert-base-uncased-SST-2", dataset: dict[str, Any] = HUB, **parts: Any) -> str:
    settings = {
        "model": {"name": model},
        "task": {"dataset": dataset, "splits": {"calibration": "train[100:]", "test": "validation"}},
        "prune": {"target": {"parameters": 0.3}},
        "output": {"dir": "runs"},
    }
    return check(settings | parts).to_yaml()


BLOCK = 8
KINDS = {"neuron": 6, "head": 4, "expert": 4}  # arms of a site
ALL_SITES = SITES["bert"] | {"expert": SITES["mixtral"]["expert"]}


def make_arms(kinds: tuple[str, ...] = ("neuron", "head"), layers: int = 3) -> pd.DataFrame:
    """Arms whose effects go from 1e-6 up by a factor of 3 an arm; in every layer the first half is removed."""
    rows = []
    for kind in kinds:
        for layer in range(layers):
            for index in range(KINDS[kind]):
                kept = index >= KINDS[kind] // 2
                site = ALL_SITES[kind].format(layer)
                rows.append({"site": site, "kind": kind, "layer": layer, "index": index, "pulls": 2, "kept": kept})
    arms = pd.DataFrame(rows)
    arms["mean"] = -1e-6 * 3.0 ** arms["index"]
    width = np.where(arms["kind"] == "neuron", BLOCK, 1)
    arms["start"], arms["stop"] = arms["index"] * width, (arms["index"] + 1) * width
    arms["parameters"], arms["macs"] = 10 * width, 100 * width
    arms["removed_round"] = np.where(arms["kept"], 0, 1)
    return arms


def report_of(arms: pd.DataFrame, rounds: int = 3) -> Report:
    figures = ModelFigures(1000, 600, 300, 5000, 0.3, 0.0, {"accuracy": 0.9}, {"accuracy": (0.88, 0.92)})
    kept: dict[str, dict[str, tuple[int, int]]] = {}
    for (kind, site), rows in arms.groupby(["kind", "site"], sort=False):
        units = rows["stop"] - rows["start"]
        kept.setdefault(str(kind), {})[str(site)] = (int(units[rows["kept"]].sum()), int(units.sum()))
    course = [
        {
            "number": number,
            "removed": 4 * number,
            "removed_fraction": number / rounds,
            "pulls": 1500 * number,
            "kl": 1e-4 * 10.0**number,
            "loss": 0.3 + 0.01 * number,
            "loss_before": 0.3,
            "seconds": 4.0 * number,
        }
        for number in range(1, rounds + 1)
    ]
    search = SearchFigures({"name": "ucb1"}, "kl", len(arms), 4500, 10**6, 0, 12.0, 1, "target reached", course)
    return Report(
        "m", "bert", "sequence_classification", "d", "per_layer", "", {"neurons": 0.5}, 0, "cpu", 16, "accuracy", True,
        figures, figures, [RandomFigures(0, figures)], kept, search,
    )  # fmt: skip


def make_examples(count: int = 8) -> pd.DataFrame:
    """Examples of two classes; the first and the last are answered otherwise, the last one rightly."""
    numbers = np.arange(count)
    target = numbers % 2
    dense, pruned = target.copy(), target.copy()
    dense[-1], pruned[0] = 1 - target[-1], 1 - target[0]
    changed = (dense != pruned).astype(float)
    scores = {
        f"{name}_{measure}": values
        for name, answers in {"dense": dense, "pruned": pruned}.items()
        for measure, values in {
            "loss": 0.5 + (answers != target),
            "correct": (answers == target).astype(float),
        }.items()
    }
    columns = {"tokens": 4 + numbers, "kl": 0.01 + changed * (1 + numbers / 10), "changed": changed, **scores}
    return pd.DataFrame({**columns, "target": target, "dense": dense, "pruned": pruned})

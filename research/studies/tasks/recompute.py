"""The figures of a run once more: from the saved checkpoint, with transformers, scikit-learn and scipy alone.

Losses, divergences and metrics are written out here, or those of a library; `readings.py` lets the models read.

Symbols: P positions of a row that count; C classes; z logits of the pruned model, [P, C], or numbers, [P]; z0 those of
the dense one; y what is right.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import yaml
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, kl_div, mse_loss

from hf_mabprune.artifacts.run_folder import RunFolder
from research.studies.tasks.readings import Said, load, read

FIELDS = ("parameters", "loss", "kl")
Measure = Callable[[Tensor, Tensor], Tensor]


def compared(name: str, folder: Path) -> str:
    """Computes the figures of a task's run, and says how far they are from those in its report.

    Args:
        name: Name of the task.
        folder: Its folder, with `task.yaml` and `run`.
    """
    settings = yaml.safe_load((folder / "task.yaml").read_text())
    report = json.loads(RunFolder(folder / "run").report.read_text())
    models = [settings["model"]["name"], str(folder / "run")]
    dense, small = (list(read(name, model, settings)) for model in models)
    found = {"before": figures(name, dense, dense), "after": figures(name, small, dense)}
    found["before"]["parameters"], found["after"]["parameters"] = (parameters(name, model) for model in models)
    differences = {}
    for when, own in found.items():
        told = {**report[when]["metrics"], **{key: report[when][key] for key in FIELDS}}
        for key, value in own.items():
            if told.get(key) is not None:
                differences[f"{when} {key}"] = abs(value - told[key]) / max(1.0, abs(told[key]))
    worst = max(differences, key=lambda key: differences[key])
    missing = sorted({*report["after"]["metrics"]} - found["after"].keys())
    return (
        f"{name}: {len(differences)} figures of {len(small)} rows, "
        f"largest difference {differences[worst]:.2g} ({worst})"
        + (f"; not computed: {', '.join(missing)}" if missing else "")
    )


def parameters(name: str, model: str) -> int:
    """Counts parameters, those that are shared once."""
    return int(load(name, model).num_parameters())


def figures(name: str, said: list[Said], dense: list[Said]) -> dict[str, float]:
    """Computes loss, mean over all positions, divergence from the dense model, mean over rows, and metrics."""
    losses, distances = LOSSES.get(name, classes)
    kl = float(np.mean([float(distances(row.z, other.z)) for row, other in zip(said, dense, strict=True)]))
    counts = [row.y.numel() for row in said]
    loss = float(np.average([float(losses(row.z, row.y)) for row in said], weights=counts)) if losses else kl
    found = {"loss": loss, "kl": kl}
    return {**found, **METRICS[name](said, dense)}


def class_loss(z: Tensor, y: Tensor) -> Tensor:
    """Gives the cross-entropy, mean over positions."""
    return cross_entropy(z.double(), y)


def class_distance(z: Tensor, z0: Tensor) -> Tensor:
    """Gives KL(p || q), mean over positions."""
    log_q, log_p = z.double().log_softmax(-1), z0.double().log_softmax(-1)
    return kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()


def label_loss(z: Tensor, y: Tensor) -> Tensor:
    """Gives the cross-entropy of yes and no, mean over labels."""
    return binary_cross_entropy_with_logits(z.double(), y.double())


def label_distance(z: Tensor, z0: Tensor) -> Tensor:
    """Gives the KL divergence of Bernoulli distributions, mean over labels."""
    return class_distance(*(torch.stack([torch.zeros_like(each), each], -1) for each in (z, z0)))


def number_loss(z: Tensor, y: Tensor) -> Tensor:
    """Gives the squared error, mean over outputs."""
    return mse_loss(z.double(), y.double())


def number_distance(z: Tensor, z0: Tensor) -> Tensor:
    """Gives the divergence of Gaussians of variance 1, mean over outputs."""
    return mse_loss(z.double(), z0.double()) / 2


def angle(z: Tensor, z0: Tensor) -> Tensor:
    """Gives 1 - cosine, mean over texts."""
    return (1 - cosine_similarity(z.double(), z0.double())).mean()


classes = (class_loss, class_distance)
numbers = (number_loss, number_distance)
LOSSES: dict[str, tuple[Measure | None, Measure]] = {
    "multi_label_classification": (label_loss, label_distance),
    "regression": numbers,
    "tabular_regression": numbers,
    "sentence_embedding": (None, angle),  # no embedding is right, so the distance stands for the loss
}


def of_entities(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives the F1 of spans and the accuracy of tags."""
    names = said[0].more["names"]
    found = [[names[int(tag)] for tag in row.z.argmax(-1)] for row in said]
    right = [[names[int(tag)] for tag in row.y] for row in said]
    ours, theirs = (
        {(number, *span) for number, tags in enumerate(each) for span in spans(tags)} for each in (found, right)
    )
    return {
        "entity_f1": 2 * len(ours & theirs) / (len(ours) + len(theirs)),
        "accuracy": accuracy_score(*(list(chain.from_iterable(each)) for each in (right, found))),
    }


def spans(tags: list[str]) -> Iterator[tuple[str, int, int]]:
    """Gives kind, first and last word of each marked span, as conlleval counts them: an I after another kind, or after
    none, begins one."""
    begin, open_kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if open_kind and (mark != "I" or kind != open_kind):
            yield open_kind, begin, place - 1
            open_kind = ""
        if mark in ("B", "I") and not open_kind:
            begin, open_kind = place, kind


def of_answers(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives exact match and word F1, as SQuAD's script has them."""
    pairs = [[plain(text).split() for text in row.more["texts"]] for row in said]
    common = [sum((Counter(one) & Counter(other)).values()) for one, other in pairs]
    return {
        "exact_match": float(np.mean([one == other for one, other in pairs])),
        "word_f1": float(
            np.mean([2 * n / (len(one) + len(other)) for n, (one, other) in zip(common, pairs, strict=True)])
        ),
    }


def plain(text: str) -> str:
    """Takes away case, punctuation and articles."""
    return re.sub(r"\b(a|an|the)\b", " ", "".join(sign for sign in text.lower() if sign not in string.punctuation))


def of_labels(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives F1 and accuracy of labels."""
    found, right = np.array([(row.z > 0).numpy() for row in said]), np.array([row.y.numpy() == 1 for row in said])
    scores = {f"{average}_f1": float(f1_score(right, found, average=average)) for average in ("micro", "macro")}
    return {**scores, "accuracy": float((found == right).mean())}


def of_numbers(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives correlations, means over outputs, R2 and the squared error."""
    found, right = np.array([row.z.numpy() for row in said]), np.array([row.y.numpy() for row in said])
    columns = list(zip(found.T, right.T, strict=True))
    return {
        "pearson": float(np.mean([pearsonr(*pair).statistic for pair in columns])),
        "spearman": float(np.mean([spearmanr(*pair).statistic for pair in columns])),
        "mse": float(mean_squared_error(right, found)),
        "r2": float(r2_score(right, found)),
    }


def of_tokens(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives perplexity, and how many tokens, and whole rows, are the likeliest ones."""
    counts = [len(row.y) for row in said]
    hits = [(row.z.argmax(-1) == row.y).double().mean().item() for row in said]
    losses = [float(class_loss(row.z, row.y)) for row in said]
    return {
        "perplexity": float(np.exp(np.average(losses, weights=counts))),
        "token_accuracy": float(np.average(hits, weights=counts)),
        "exact_match": float(np.mean(np.equal(hits, 1))),
    }


def of_pairs(said: list[Said], dense: list[Said]) -> dict[str, float]:
    """Gives the rank correlation of cosines with scores."""
    cosines = [float(cosine_similarity(row.z[0].double(), row.z[1].double(), dim=0)) for row in said]
    return {"spearman": float(spearmanr(cosines, [float(row.y) for row in said]).statistic)}


def of_ranks(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives nDCG, mean reciprocal rank and how often the right candidate is first."""
    ranks = np.array([1 + int((row.z[0] > row.z[0, row.y]).sum()) for row in said])
    return {
        "ndcg": float((1 / np.log2(1 + ranks)).mean()),
        "mrr": float((1 / ranks).mean()),
        "accuracy": float((ranks == 1).mean()),
    }


def of_classes(said: list[Said], _: list[Said]) -> dict[str, float]:
    """Gives accuracy."""
    return {"accuracy": accuracy_score([int(row.y) for row in said], [int(row.z.argmax()) for row in said])}


METRICS: dict[str, Callable[[list[Said], list[Said]], dict[str, float]]] = {
    "token_classification": of_entities,
    "question_answering": of_answers,
    "masked_lm": of_tokens,
    "multi_label_classification": of_labels,
    "regression": of_numbers,
    "seq2seq": of_tokens,
    "sentence_embedding": of_pairs,
    "reranking": of_ranks,
    "causal_lm": of_tokens,
    "tabular_classification": of_classes,
    "tabular_regression": of_numbers,
}

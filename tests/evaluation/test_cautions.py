"""What the figures of a pruned model alone do not say."""

from dataclasses import replace

import numpy as np

from hf_mabprune.evaluation.cautions import of_the_result
from hf_mabprune.evaluation.figures import ModelFigures, RandomFigures
from tests.artifacts.reports import figures


def warnings(after: ModelFigures, drawn: ModelFigures, kept: dict[str, dict[str, tuple[int, int]]]) -> list[str]:
    return of_the_result(after, [RandomFigures(0, drawn)], kept)


def test_sites_that_keep_next_to_nothing_are_named_with_the_remedy() -> None:
    good = figures(0.9, 0.2)
    kept = {"neuron": {"a": (32, 2048), "b": (128, 2048)}, "head": {"c": (1, 12)}}
    (line,) = warnings(good, good, kept)
    assert line.startswith("less than 1 in 16 neurons are left at a (32 of 2,048): raise prune.min_neurons if")
    many = {"head": {str(layer): (1, 32) for layer in range(9)}}
    (line,) = warnings(good, good, many)
    assert "3 (1 of 32) and 5 more: raise prune.min_heads" in line


def test_a_search_that_had_nothing_to_go_by_is_said() -> None:
    still = replace(figures(0.5, 0.7), kl=1e-17)
    (line,) = warnings(still, still, {})
    assert line.startswith("nothing that the model says depends on the arms")
    assert warnings(still, figures(0.5, 0.7), {}) == []


def test_figures_that_are_no_numbers_are_no_zeros() -> None:
    broken = replace(figures(0.5, float("nan")), kl=float("nan"))
    assert warnings(broken, broken, {}) == ["the loss of the pruned model is not finite"]
    assert not np.isfinite(broken.loss)

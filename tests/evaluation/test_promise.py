"""Promises: what tests certify, how often they err, which size is taken, and what is refused before a search."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli import main
from hf_mabprune.config import PromiseConfig, check
from hf_mabprune.evaluation import promise as room
from hf_mabprune.evaluation.bounds import MANY, Floats, is_below, least_examples, upper_share
from hf_mabprune.evaluation.promise import Made, holds, smallest_that_holds
from hf_mabprune.pipeline import prune_from_config
from tests.problems import QUICK, settings_for
from tests.seeds import moved

SIZES = 6
KINDS = (PromiseConfig(changed=0.02), PromiseConfig(kl=0.05), PromiseConfig(metric=0.01))


def pool_of(promise: PromiseConfig, examples: int, rng: np.random.Generator) -> list[Floats]:
    """What each of many examples loses, [examples], at sizes that lose ever more, the middle ones near the promise."""
    lost = []
    for share in promise.most * np.array([0.1, 0.3, 0.7, 1.1, 1.6, 3.0]):
        if promise.of == "changed":
            values = (rng.random(examples) < share).astype(float)
        elif promise.of == "kl":  # hardly anything for most, a lot for few
            values = (rng.exponential(1.0, examples) * (rng.random(examples) < share)).clip(0, promise.clip)
        else:  # answers become wrong, and some of them right
            values = (rng.random(examples) < share + 0.01).astype(float) - (rng.random(examples) < 0.01)
        lost.append(values)
    return lost


def errs(promise: PromiseConfig, pool: list[Floats], count: int, draws: int, rng: np.random.Generator) -> float:
    """Share of draws of so many examples in which the size that is taken loses more of the pool than was promised."""
    above = [values.mean() > promise.most for values in pool]
    wrong = 0
    for _ in range(draws):
        rows, taken = rng.integers(len(pool[0]), size=count), -1
        for number, values in enumerate(pool):
            if not holds(promise, values[rows], promise.of == "changed"):
                break
            taken = number
        wrong += taken >= 0 and above[taken]
    return wrong / draws


@pytest.mark.parametrize("promise", KINDS, ids=lambda promise: promise.of)
def test_a_size_that_loses_more_is_seldom_taken(promise: PromiseConfig) -> None:
    rng, draws = np.random.default_rng(moved(0)), 400
    pool = pool_of(promise, 20_000, rng)
    assert pool[0].mean() < promise.most < pool[-1].mean()
    assert errs(promise, pool, 872, draws, rng) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.slow
@pytest.mark.parametrize("count", [500, 872])
@pytest.mark.parametrize("promise", KINDS, ids=lambda promise: promise.of)
def test_a_size_that_loses_more_is_taken_as_seldom_as_it_says(promise: PromiseConfig, count: int) -> None:
    """5,000 draws."""
    rng, draws = np.random.default_rng(moved(1)), 5000
    pool = pool_of(promise, 50_000, rng)
    assert errs(promise, pool, count, draws, rng) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("promise", KINDS, ids=lambda promise: promise.of)
def test_no_order_of_the_examples_makes_a_promise_hold(promise: PromiseConfig) -> None:
    """Splits are measured from the shortest example to the longest, and the long ones may lose all that is lost."""
    rng, draws = np.random.default_rng(moved(3)), 400
    lost = np.sort(rng.random((draws, 872)) < 1.05 * promise.most, axis=1).astype(float)
    assert holds(promise, lost, exact=False).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_a_bet_by_hand() -> None:
    log = np.log(1 / 0.05)
    first = min(np.sqrt(2 * log / (2 * 0.25)), 0.75 / 0.5)  # of two values, against a mean of a half
    second = min(np.sqrt(2 * log / (2 * (0.25 + (0 - 0.25) ** 2) / 2)), 0.75 / 0.5)
    capital = (1 + 0.5 * first) * (1 + 0.5 * second)
    assert capital < 20 and not is_below(np.zeros(2), 0.5)
    assert is_below(np.zeros(2), 0.5, confidence=1 - 1.01 / capital)
    assert not is_below(np.zeros(2), 0.5, confidence=1 - 0.99 / capital)
    many = np.random.default_rng(0).random((3, 1000)) * np.array([[0.1], [0.19], [0.3]])
    assert is_below(many, 0.12).tolist() == [True, True, False]


@pytest.mark.parametrize(("most", "lost", "exact"), [(0.02, 0.0, True), (0.05, 0.0, False), (0.505, 0.5, False)])
def test_the_least_number_of_examples_is_enough_and_one_fewer_is_not(most: float, lost: float, exact: bool) -> None:
    least = least_examples(most, lost, 0.95, exact)
    enough = [
        upper_share(0, count) <= most if exact else bool(is_below(np.full(count, lost), most))
        for count in (least - 1, least)
    ]
    assert enough == [False, True]
    assert least_examples(0.02, 0.0, 0.95, exact=True) == 149
    assert least_examples(1e-12, 0.0, 0.95, exact=False) == MANY, "which ends, too"


def test_tests_go_from_the_largest_model_on_and_end_with_the_first_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    promise, asked = PromiseConfig(changed=0.02), list[str]()
    lost = {"neurons-0.1": 0, "neurons-0.2": 3, "neurons-0.3": 40, "neurons-0.4": 0}

    def sizes() -> Iterator[Made]:
        for name in lost:
            asked.append(name)
            prune: Any = SimpleNamespace(target=SimpleNamespace(name=lambda name=name: name))
            yield Made(prune, None, name, None, None)  # type: ignore[arg-type]

    comparison: Any = SimpleNamespace(on_certification=lambda name: (name, None))
    losses = {name: np.repeat([1.0, 0.0], [count, 1000 - count]) for name, count in lost.items()}
    monkeypatch.setattr(room, "losses_of", lambda _, small, __: (losses[small], True))
    taken = smallest_that_holds(comparison, sizes(), promise)
    assert taken.model == "neurons-0.2" and asked == [*lost][:3], "what comes after a failure is not looked at"  # type: ignore[comparison-overlap]
    assert taken.promise is not None
    assert taken.promise.tests == [
        ("neurons-0.1", 0.0, True), ("neurons-0.2", 0.003, True), ("neurons-0.3", 0.04, False)
    ]  # fmt: skip
    assert "neurons-0.2 0.003 holds, neurons-0.3 0.04 not shown" in str(taken.promise)
    lost["neurons-0.1"], losses["neurons-0.1"] = 40, losses["neurons-0.3"]
    with pytest.raises(
        ValueError, match=r"no size keeps prune.promise, .* neurons-0.1 0.04 not shown; ask for a larger"
    ):
        smallest_that_holds(comparison, sizes(), promise)


@pytest.mark.parametrize(
    ("promise", "message"),
    [
        ({}, "promise must be one of: changed, kl, metric"),
        ({"changed": 0.02, "kl": 0.1}, "promise must be one of: changed, kl, metric"),
        ({"kl": 1.5}, "promise.kl must be below promise.clip, 1, got 1.5"),
        ({"changed": 2}, "prune.promise.changed must be a number > 0 and < 1, or null, got 2"),
    ],
)
def test_a_promise_of_nothing_is_refused(promise: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check({"model": {"name": "m"}, "output": {"dir": "o"}, "prune": {"target": {"macs": 0.2}, "promise": promise}})


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_run_takes_one_size_and_says_what_it_promises(
    tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"test": "test", "validation": "validation[:-24]", "certification": "validation[-24:]"}

    def settings(promise: dict[str, float], **more: Any) -> Any:
        prune = {"target": {"neurons": [0.1, 0.5]}, "promise": promise}
        changes = {"prune": prune, "compensation": QUICK, "output": {"random_seeds": 1}, "task": {"splits": splits}}
        return settings_for(tmp_path, files, "bert", **{**changes, **more})

    for promise, message in (
        ({"changed": 0.02}, "takes 149 certification examples, even where nothing is lost on any of them, got 24"),
        ({"metric": 0.01}, r"takes \d+ certification examples, even where nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_from_config(settings(promise))
    with pytest.raises(ValueError, match=r"name it, task\.splits\.certification"):
        prune_from_config(settings({"kl": 0.5}, task={"splits": {"test": "test"}}))
    assert not (tmp_path / "out").exists()
    result = prune_from_config(settings({"kl": 0.9}))
    report, held = result.report, result.report.promise
    assert (
        held is not None
        and held.examples == 24
        and [name for name, *_ in held.tests] == ["neurons-0.1", "neurons-0.5"]
    )
    assert report.target == {"neurons": 0.5} and [size.name for size in report.sizes] == ["neurons-0.5"]
    assert report.certified_on == "test", "the bounds of the report are of data that have not chosen the size"
    _, stored = RunFolder(tmp_path / "out").read()
    assert stored.promise == held, "one size, in the folder itself"
    said = result.summary(tmp_path / "out")
    assert "with 95% confidence on data like the certification split, mean KL (each example's clipped at 1)" in said
    assert main(["cut", str(tmp_path / "out"), "--target.neurons", "0.2"]) == 2
    assert "cut tests no promise" in capsys.readouterr().err

"""Promises by splits that are drawn from a pool: chosen as a run chooses, and counted by hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hf_mabprune.config import PromiseConfig
from hf_mabprune.evaluation import promise as room
from hf_mabprune.evaluation.promise import Made, smallest_that_holds
from research.benchmarks import promises
from tests.problems import settings_for
from tests.seeds import moved

POOL = 4000


def lost_by_four_sizes() -> dict[str, np.ndarray]:
    """What each example of a pool loses, [sizes, N], ever more."""
    rng = np.random.default_rng(moved(0))
    shares = np.array([[0.005], [0.02], [0.05], [0.12]])
    changed = (rng.random((4, POOL)) < shares).astype(float)
    won = (rng.random((4, POOL)) < 0.01).astype(float)
    return {"changed": changed, "kl": changed * rng.random((4, POOL)), "metric": changed - won}


def taken_by_a_run(promise: PromiseConfig, lost: np.ndarray, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of sizes that `smallest_that_holds` goes through until one fails, by the losses of one split."""

    def made(number: int) -> Made:
        prune: Any = SimpleNamespace(target=SimpleNamespace(name=lambda: str(number)))
        return Made(prune, None, number, None, None)  # type: ignore[arg-type]

    comparison: Any = SimpleNamespace(on_certification=lambda number: (number, None))
    monkeypatch.setattr(room, "losses_of", lambda _, number, __: (lost[number][rows], promise.of == "changed"))
    try:
        return int(smallest_that_holds(comparison, map(made, range(len(lost))), promise).prune.target.name()) + 1
    except ValueError:
        return 0


@pytest.mark.parametrize(
    "promise", [PromiseConfig(changed=0.04), PromiseConfig(kl=0.03), PromiseConfig(metric=0.04)], ids=lambda p: p.of
)
def test_splits_choose_the_size_that_a_run_would_write(
    promise: PromiseConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, drawn = lost_by_four_sizes()[promise.of], promises.splits(POOL, 400, 40, moved(1))
    assert drawn.shape == (40, 400) and (np.diff(drawn) >= 0).all(), "in the order that a run measures examples in"
    chosen = promises.chosen_by(promise, lost, drawn)
    assert chosen.tolist() == [taken_by_a_run(promise, lost, rows, monkeypatch) for rows in drawn]
    assert len(set(chosen.tolist())) > 1


def test_what_draws_have_chosen_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = lost_by_four_sizes()
    losses = pd.concat(
        pd.DataFrame({"target": f"size-{n}", "left": 0.9 - 0.2 * n, **{kind: lost[kind][n] for kind in lost}})
        for n in range(4)
    )
    most = float(lost["changed"][1].mean())
    monkeypatch.setattr(promises, "chosen_by", lambda *_: np.repeat([0, 1, 2, 3], [10, 40, 30, 20]))
    table = promises.simulate(losses, [PromiseConfig(changed=most)], [300], 100, seed=0)
    row = table.iloc[0]
    assert (row["smallest"], row["none"], row["found"], row["broken"]) == ("size-1", 0.1, 0.3, 0.2)
    assert row["limit"] == pytest.approx(0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)) and not row["holds"]
    assert row["steps"] == pytest.approx((10 * 2 + 40 * 1) / 80)
    assert row["more"] == pytest.approx((10 * (1.0 - 0.7) + 40 * (0.9 - 0.7)) / 80)
    edges = table.iloc[1:].set_index("just_broken_by")
    assert edges[edges["promise"].str.startswith("changed")]["smallest"].to_dict() == {
        "size-1": "size-0", "size-2": "size-1", "size-3": "size-2",
    }, "300 examples are too few for half a hundredth"  # fmt: skip


@pytest.mark.whole
def test_losses_are_measured_once(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"test": "test[:16]", "certification": "test[16:]"}
    prune = {"target": {"neurons": [0.25, 0.75]}}
    settings = settings_for(tmp_path, files, "bert", task={"splits": splits}, prune=prune)
    out = tmp_path / "rows" / "losses.parquet"
    first = promises.report(settings, str(out), [PromiseConfig(kl=0.5)], [100], 20)
    assert "neurons-0.75" in first and "kl 0.5" in first
    rows = pd.read_parquet(out)
    assert rows.groupby("target").size().to_dict() == {"neurons-0.25": 32, "neurons-0.75": 32}
    assert set(rows["changed"]) <= {0.0, 1.0} and set(rows["metric"]) <= {-1.0, 0.0, 1.0} and rows["kl"].max() > 0
    monkeypatch.setattr(promises, "open_session", lambda *_: pytest.fail("all sizes were there"))
    assert promises.report(settings, str(out), [PromiseConfig(kl=0.5)], [100], 20) == first
    with pytest.raises(ValueError, match=r"kl=0.001 takes [0-9,]+ examples, got 100: promise less"):
        promises.report(settings, str(out), [PromiseConfig(kl=0.001)], [100], 20)
    with pytest.raises(ValueError, match="holds no losses of these settings; use another --out"):
        promises.report(settings.model_copy(update={"seed": 1}), str(out), [], [100], 20)


@pytest.mark.parametrize(
    ("given", "message"), [("speed=2", "no promise 'speed=2': write one of changed=0.02"), ("kl=a lot", "'kl=a lot'")]
)
def test_a_promise_of_nothing_is_refused(given: str, message: str) -> None:
    assert promises.read_promise("kl=0.05") == PromiseConfig(kl=0.05)
    with pytest.raises(ValueError, match=message):
        promises.read_promise(given)

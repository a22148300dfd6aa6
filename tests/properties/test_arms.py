"""Arms, keep indices and masks say the same; a table of arms is read back as it was written, or refused."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_mabprune.arms import ArmTable
from hf_mabprune.effects.masking import keep_masks, masked
from hf_mabprune.search.result import COLUMNS, SearchResult
from hf_mabprune.tasks.batch import Batch
from tests.problems import problem, table


@cache
def bert() -> tuple[PreTrainedModel, Batch, ArmTable]:
    model, _, batches, arms = problem("bert")
    return model, batches[0], arms


def masks_of(arms: ArmTable) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.booleans(), min_size=len(arms), max_size=len(arms)).map(np.array)


@given(st.data())
def test_masks_keep_what_the_indices_keep(data: st.DataObject) -> None:
    model, _, arms = bert()
    kept = data.draw(masks_of(arms))
    keep = arms.kept_units(kept)
    masks = keep_masks(model, keep)
    assert masks.keys() == keep.keys()
    for site, rows in arms.groups():
        assert np.flatnonzero(masks[site].numpy()).tolist() == keep[site].tolist(), "1 = keep"
        assert kept[rows].tolist() == [bool(masks[site][start]) for start in arms.start[rows]]


@given(st.data())
def test_only_what_is_removed_changes_the_logits(data: st.DataObject) -> None:
    model, batch, arms = bert()
    kept = data.draw(masks_of(arms) | st.just(np.ones(len(arms), dtype=bool)))
    inputs = {name: part for name, part in batch.items() if name != "labels"}
    with torch.no_grad():
        dense = model(**inputs).logits
        with masked(model, masks=keep_masks(model, arms.kept_units(kept))):
            pruned = model(**inputs).logits
        again = model(**inputs).logits
    assert torch.equal(dense, again), "masks leave nothing behind"
    assert torch.equal(dense, pruned) or not kept.all()


@st.composite
def results(draw: st.DrawFn) -> tuple[ArmTable, SearchResult]:
    """Draws what a finished search of some rounds may have found."""
    sizes = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=4), min_size=1, max_size=3)
    arms = table(draw(sizes), draw(sizes))
    count = len(arms)
    order = np.array(draw(st.permutations(range(count))))
    rounds = sorted(draw(st.lists(st.integers(1, 3), max_size=count)))
    removed_round = np.zeros(count, dtype=np.int64)
    removed_round[order[: len(rounds)]] = rounds
    scores = st.lists(st.floats(-1e300, 1e300) | st.just(-np.inf), min_size=count, max_size=count)
    pulls = st.lists(st.integers(0, 2**40), min_size=count, max_size=count)
    found = SearchResult(
        removed_round == 0, order, np.array(draw(scores)), np.array(draw(pulls), dtype=np.int64), removed_round
    )
    return arms, found


def through_a_file(frame: pd.DataFrame) -> pd.DataFrame:
    with TemporaryDirectory() as folder:
        frame.to_parquet(Path(folder) / "arms.parquet")
        return pd.read_parquet(Path(folder) / "arms.parquet")


@given(results())
def test_a_table_of_arms_is_read_back_as_it_was(made: tuple[ArmTable, SearchResult]) -> None:
    arms, found = made
    again = SearchResult.from_table(through_a_file(found.table(arms, found.kept)), arms, [])
    for name in ("kept", "order", "scores", "pulls", "removed_round"):
        assert np.array_equal(getattr(again, name), getattr(found, name)), name


def spoil(frame: pd.DataFrame, name: str, how: str, row: int) -> pd.DataFrame:
    """Gives a table with one thing wrong in it."""
    frame = frame.copy()
    if how == "missing":
        return frame.drop(columns=name)
    if how == "twice":
        return pd.concat([frame, frame[[name]]], axis=1)
    if how == "a_row_less":
        return frame.drop(index=row)
    if how == "a_row_twice":
        return pd.concat([frame, frame.iloc[[row]]])
    if how == "words":
        return frame.assign(**{name: frame[name].astype(str)})
    value = {"null": None, "negative": -1, "huge": 2**62, "infinite": np.inf, "nan": np.nan}[how]
    frame[name] = frame[name].astype(object)
    frame.loc[row, name] = value
    try:
        return frame.assign(**{name: pd.to_numeric(frame[name])})
    except (TypeError, ValueError):
        return frame


WAYS = ["missing", "twice", "a_row_less", "a_row_twice", "words", "null", "negative", "huge", "infinite", "nan"]
HARMLESS = {("site", "words"), ("pulls", "huge"), *(("mean", how) for how in ("negative", "huge"))}
SPOILT = [(name, how) for name in [*COLUMNS, "site", "start", "stop", "layer"] for how in WAYS]


@given(results(), st.sampled_from([case for case in SPOILT if case not in HARMLESS]), st.data())
def test_a_spoilt_table_is_refused_in_one_line(
    made: tuple[ArmTable, SearchResult], case: tuple[str, str], data: st.DataObject
) -> None:
    arms, found = made
    wrong = spoil(found.table(arms, found.kept), *case, data.draw(st.integers(0, len(arms) - 1)))
    with pytest.raises(ValueError, match=r"table of arms|do not fit this model's") as caught:
        SearchResult.from_table(wrong, arms, [])
    assert "\n" not in str(caught.value)


@given(results(), st.data())
def test_an_order_that_is_none_is_refused(made: tuple[ArmTable, SearchResult], data: st.DataObject) -> None:
    arms, found = made
    frame = found.table(arms, found.kept)
    one, other = data.draw(st.tuples(*[st.integers(0, len(arms) - 1)] * 2))
    frame.loc[one, "order"] = frame.loc[other, "order"]
    if one == other:
        assert SearchResult.from_table(frame, arms, []).order.tolist() == found.order.tolist()
    else:
        with pytest.raises(ValueError, match=r"order must have every place once"):
            SearchResult.from_table(frame, arms, [])

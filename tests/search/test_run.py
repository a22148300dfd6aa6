"""A search that has ended is taken up as it was, with nothing found out again, and leaves nothing in memory."""

import gc
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_mabprune.compensation import RefitCache
from hf_mabprune.config import check
from hf_mabprune.search.loop import Search
from hf_mabprune.search.rules.refit import Refit
from hf_mabprune.search.run import search
from hf_mabprune.selection.layouts import make_plans
from hf_mabprune.selection.plan import Plan
from hf_mabprune.session import Session, make_session
from tests.seeds import moved
from tests.tasks.tiny_tasks import make_tokenizer
from tests.tiny_models import tiny_model


class Kept:
    """Keeps the last state in memory, as a run keeps it on disk."""

    state: dict[str, Any] | None = None

    def restore(self, under_way: Search) -> bool:
        if self.state is not None:
            under_way.load_state_dict(self.state)
        return self.state is not None

    def keep(self, under_way: Search, round_ended: bool) -> None:
        self.state = under_way.state_dict()

    def ended(self, under_way: Search) -> None:
        pass


def text(seed: int) -> Dataset:
    words = np.random.default_rng(moved(seed)).choice(list("abcdefghij"), 600)
    return Dataset.from_dict({"text": [" ".join(words)]})


def small_run() -> tuple[Session, list[Plan]]:
    """A session of a tiny language model whose search measures allocations, and the plan of its one size."""
    task = {"dataset": {"path": "in-memory"}, "type": "causal_lm", "max_length": 16, "batch_size": 4}
    given = {"model": {"name": "tiny"}, "task": {**task, "calibration_examples": 16, "refit_examples": 0}}
    prune = {"target": {"layer_parameters": 0.3}, "block_size": 4}
    settings = check(
        {**given, "prune": prune, "search": {"rule": {"name": "refit", "moves": 6}}, "output": {"dir": "x"}}
    )
    splits = {split: text(number) for number, split in enumerate(("calibration", "validation", "test"))}
    model = tiny_model("llama", "AutoModelForCausalLM")
    session = make_session(settings, model, make_tokenizer("plain"), splits, Accelerator(cpu=True), torch.float32)
    return session, [make_plans(session.dense, session.arms, session.totals, settings.prune).search]


def test_a_search_that_has_ended_is_not_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (session, plans), run = small_run(), Kept()
    result, cost = search(session, plans, run)  # type: ignore[arg-type]
    monkeypatch.setattr(Refit, "prepare", lambda *_: pytest.fail("prepared again"))
    again, same_cost = search(session, plans, run)  # type: ignore[arg-type]
    assert np.array_equal(result.order, again.order) and np.array_equal(result.kept, again.kept)
    assert result.stopped_because == again.stopped_because and "allocation" in again.stopped_because
    assert cost == same_cost and cost.forward_tokens > 0


def test_nothing_holds_what_a_search_has_kept_once_it_has_ended() -> None:
    session, plans = small_run()
    gc.collect()
    gc.disable()  # what nobody refers to goes at once; what refers to itself would wait
    try:
        search(session, plans)
        left = [type(each).__name__ for each in gc.get_objects() if issubclass(type(each), (Search, RefitCache))]
    finally:
        gc.enable()
    assert not left

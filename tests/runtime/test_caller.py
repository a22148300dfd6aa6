"""`prune` in whatever state the caller's process is: the same result, and the same state afterwards."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import BertForSequenceClassification

from hf_mabprune import prune
from hf_mabprune.runtime.caller import undisturbed
from tests.problems import sentences
from tests.tasks.tiny_tasks import bert, make_tokenizer

pytestmark = pytest.mark.whole


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_dtype": lambda: default_dtype(torch.float64),
    "default_device": lambda: torch.device("meta"),
}


def run(model: BertForSequenceClassification, folder: Path) -> dict[str, torch.Tensor]:
    """Prunes and trains a little; gives the weights of the smaller model."""
    splits = [Dataset.from_dict(sentences(24, seed)) for seed in range(3)]
    result = prune(
        model,
        make_tokenizer("pair"),
        *splits,
        target={"neurons": 0.5},
        output_dir=folder,
        task={"batch_size": 8},
        prune={"block_size": 8, "layout": "per_layer"},
        search={"pulls_per_arm": 1},
        recovery={"epochs": 1, "batch_size": 8},
        output={"random_seeds": 1},
    )
    return result.cut({"neurons": 0.3}).model.state_dict() | result.model.state_dict()


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, torch.Tensor]:
    """What comes out where nothing is unusual."""
    return run(bert(num_labels=2), place / "plain")


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_the_caller_change_nothing(
    mode: str, expected: dict[str, torch.Tensor], tmp_path: Path, without_figures: None
) -> None:
    model = bert(num_labels=2)
    with MODES[mode]():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        found = run(model, tmp_path / "out")
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert after == before
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_random_numbers_go_on_as_if_nothing_had_happened(tmp_path: Path, without_figures: None) -> None:
    def numbers() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    coming = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    run(bert_apart(), tmp_path / "out")
    assert numbers() == coming


def bert_apart() -> BertForSequenceClassification:
    """A model whose making leaves the random numbers alone."""
    with torch.random.fork_rng():
        return bert(num_labels=2)


def test_settings_of_the_process_come_back_after_an_error() -> None:
    verbosity, threads = transformers.logging.get_verbosity(), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), undisturbed():
        transformers.logging.set_verbosity_debug()
        transformers.logging.enable_progress_bar()
        torch.set_num_threads(threads + 1)
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(True)
        raise ZeroDivisionError
    assert transformers.logging.get_verbosity() == verbosity
    assert not transformers.logging.is_progress_bar_enabled()
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_model_made_in_inference_mode_is_refused_in_one_line(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = bert(num_labels=2)
    with pytest.raises(ValueError, match=r"made in torch\.inference_mode.*load the model outside") as refused:
        run(model, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()

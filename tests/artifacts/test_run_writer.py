from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pandas as pd
import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.artifacts.run_writer import RunWriter
from hf_mabprune.config import check
from hf_mabprune.session import Session
from hf_mabprune.tasks.batch import Batch
from tests.artifacts.reports import config, make_arms, make_examples, report_of
from tests.tasks.tiny_tasks import bert, make_tokenizer, task_of

pytestmark = pytest.mark.usefixtures("without_figures")
ARMS, EXAMPLES = make_arms(), make_examples()
IDS = Batch(input_ids=torch.tensor([[3, 4, 5]]), attention_mask=torch.ones(1, 3, dtype=torch.long))
MODEL = bert()
NOTHING = "nothing was written"


def settings_text(*fractions: float) -> str:
    return config(prune={"target": {"neurons": list(fractions) if len(fractions) > 1 else fractions[0]}})


def writer_for(place: Path, *fractions: float) -> RunWriter:
    tokenizer = make_tokenizer("pair")
    parts = {"accelerator": Accelerator(cpu=True), "save_dtype": torch.float32, "batches": {"test": [IDS]}}
    session = SimpleNamespace(**parts, task=task_of(MODEL, tokenizer), processor=tokenizer)
    settings = check(yaml.safe_load(settings_text(*fractions)))
    return RunWriter(RunFolder(place), cast(Session, session), settings)


def add(writer: RunWriter, fraction: float) -> None:
    report = replace(report_of(ARMS), target={"neurons": fraction})
    writer.add(MODEL, report, ARMS, settings_text(fraction), EXAMPLES)


def test_one_size_lies_in_the_folder_itself(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    with writer_for(folder.root, 0.5) as writer:
        add(writer, 0.5)
        assert not folder.root.exists()
        (report,) = writer.finish(search_state=b"saved")
    assert folder.search_state.read_bytes() == b"saved"
    assert folder.config.read_text() == settings_text(0.5)
    assert pd.read_parquet(folder.examples).equals(EXAMPLES)
    weights = folder.root / "model.safetensors"
    assert report.after.checkpoint_bytes == weights.stat().st_size
    assert load_file(weights)["classifier.bias"].shape == (3,)
    assert report.reload["max_logit_difference"] < 1e-6
    assert report.before.checkpoint_bytes == 4 * report.before.parameters
    assert [size.name for size in report.sizes] == ["neurons-0.5"]
    assert folder.card.is_file() and not folder.sizes()


def test_several_sizes_lie_in_folders_of_their_own_below_an_overview(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    with writer_for(folder.root, 0.25, 0.5) as writer:
        add(writer, 0.25)
        add(writer, 0.5)
        reports = writer.finish()
    assert [size.root.name for size in folder.sizes()] == ["neurons-0.25", "neurons-0.5"]
    assert [[size.name for size in report.sizes] for report in reports] == [["neurons-0.25", "neurons-0.5"]] * 2
    assert folder.config.read_text() == settings_text(0.25, 0.5)
    assert "(neurons-0.25/README.md)" in folder.card.read_text()
    assert not folder.report.exists() and not folder.size("neurons-0.5").search_state.exists()
    assert folder.size("neurons-0.5").config.read_text() == settings_text(0.5)


def leave(writer: RunWriter) -> None:
    add(writer, 0.5)


def fail(writer: RunWriter) -> None:
    add(writer, 0.5)
    raise RuntimeError(NOTHING)


def finish_without_a_size(writer: RunWriter) -> None:
    writer.finish()


@pytest.mark.parametrize("act", [leave, fail, finish_without_a_size])
def test_all_or_nothing(act: Callable[[RunWriter], None], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=NOTHING), writer_for(tmp_path / "out", 0.5) as writer:
        act(writer)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("difference", [0.5, float("nan")])
def test_a_checkpoint_that_says_something_else_is_not_kept(
    difference: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(*_: Any) -> float:
        return difference

    monkeypatch.setattr("hf_mabprune.artifacts.run_writer.reload_difference", differ)
    with (
        pytest.raises(
            RuntimeError, match=rf"differs from the model in memory by {difference:.2g} on logits; nothing was written"
        ),
        writer_for(tmp_path / "out", 0.5) as writer,
    ):
        add(writer, 0.5)
    assert not any(tmp_path.iterdir())

"""A tiny deep setting from end to end: a network of its own, every method, and a run that is stopped and goes on."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset

from research.models.training import Recipe
from research.studies.paper.deep import cells
from research.studies.paper.deep.cells import deep_methods
from research.studies.paper.deep.data import TEXTS, prepare
from research.studies.paper.deep.networks import Reader
from research.studies.paper.deep.settings import FULL, SETTINGS
from research.studies.paper.deep.stories import data_set
from research.studies.paper.deep.study import DATA, DeepStudy
from research.studies.paper.methods import CONTROLS, CRITERIA, POLICIES
from research.studies.paper.rows import A_STEP, DEEP
from research.studies.paper.runs import Unit
from research.studies.store import CELLS, stores
from tests.seeds import moved

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
TINY = replace(
    FULL,
    splits=1,
    fractions=(0.5,),
    rounds=1,
    batch_size=16,
    calibration_rows=32,
    tuning_steps=3,
    pulls_per_arm=1.0,
)
ARMS = 16
STORY = 14  # tokens of a question with its story


@pytest.fixture
def study(tmp_path: Path) -> DeepStudy:
    """Questions with one supporting fact, and a reader of one narrow layer."""
    for split, rows in data_set("one_fact", {"train": 64, "validation": 32, "test": 48}, moved(0)).items():
        rows.to_parquet(str(tmp_path / "out" / DATA / "one_fact" / f"{split}.parquet"))
    network = Reader(Recipe(steps=20, batch_size=16, learning_rate=1e-3, bfloat16=False, seed=moved(0)), SIZES)
    setting = replace(SETTINGS["one_fact"], network=network, width=32)
    return DeepStudy(tmp_path / "data", tmp_path / "out", TINY, {"one_fact": setting})


def test_every_method_cuts_the_same_network(study: DeepStudy) -> None:
    rows = study.run(study.units())
    methods = [(method.name, method.reward) for method in deep_methods(TINY)]
    assert len(methods) == len(POLICIES) + len(CONTROLS) + len(CRITERIA) + 2
    assert set(zip(rows.method, rows.reward, strict=True)) == {*methods, ("dense", "")}
    assert len(rows) == 2 * (1 + len(methods)) and rows.dense_score.nunique() == 1
    dense = rows[(rows.method == "dense") & ~rows.tuned]
    assert (dense.score == dense.dense_score).all() and (dense.kl.abs() < 1e-6).all()
    assert (dense.tokens == A_STEP * 20 * 16 * STORY).all(), "as many tokens as 20 steps of 16 questions send forward"
    cut = rows[(rows.method != "dense") & ~rows.tuned]
    assert (cut.kl > 1e-6).all() and (cut.fraction == 0.5).all()
    spent = cut[cut.method.isin([*POLICIES, "sweep", "uniform"])]
    assert (spent.pulls == ARMS).all() and (cut[cut.method.isin(CRITERIA)].pulls == 0).all()
    tuned = rows[rows.tuned]
    assert (tuned.loss.to_numpy() != rows[~rows.tuned].loss.to_numpy()).all()


def test_a_run_that_was_stopped_ends_the_same(study: DeepStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [method for method in deep_methods(TINY) if (method.name, method.reward) == ("thompson", "loss")]
    monkeypatch.setattr(cells, "deep_methods", lambda protocol: some)
    study = replace(study, protocol=replace(TINY, splits=2))
    units = study.units()
    assert [unit.name for unit in units] == ["deep/one_fact/0", "deep/one_fact/1"]
    rows, kept = study.run(units), (study.out / CELLS).read_bytes()
    (study.out / "units" / "deep--one_fact--1.parquet").unlink()
    again = study.run(units)
    assert (study.out / CELLS).read_bytes() == kept
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), rows.drop(columns="seconds"))


def test_what_is_missing_is_named(study: DeepStudy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no setting 'one_fakt'. Did you mean 'one_fact'"):
        study.units(["setting=one_fakt"])
    with pytest.raises(FileNotFoundError, match=r"mnist has no train.parquet, which deep settings"):
        replace(study, described=SETTINGS).gather([Unit(DEEP, "mnist", 0, 384)])
    with pytest.raises(FileNotFoundError, match=r"no settings.json, nor has a folder in it: no study was begun there"):
        stores(tmp_path)


def test_sources_are_drawn_from_larger_files(tmp_path: Path) -> None:
    """Validation rows come from those of training where there are no others, and are not trained on."""
    larger = {"train": 7_000, "test": 1_200}
    for split, count in larger.items():
        texts = {"text": [f"{split} {row}" for row in range(count)], "label": [row % 4 for row in range(count)]}
        Dataset.from_dict(texts).to_parquet(str(tmp_path / "agnews" / f"{split}.parquet"))
    folder = prepare("agnews", tmp_path, tmp_path / "drawn")
    parts = {split: pd.read_parquet(folder / f"{split}.parquet").text for split in ("train", "validation", "test")}
    assert {split: len(set(texts)) for split, texts in parts.items()} == TEXTS["agnews"].sizes()
    assert not set(parts["train"]) & set(parts["validation"])
    assert all(text.startswith("train") for text in parts["validation"])


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=list(SETTINGS))
def test_settings_of_every_search_are_valid(setting, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for method in deep_methods(FULL):
        settings = setting.settings(tmp_path, tmp_path, FULL, 1, method.search)
        assert setting.width % settings.block_size == 0
        assert [size.target.neurons for size in settings.prune.sizes()] == list(FULL.fractions)

"""What a run will do, without doing it: `mabprune plan`."""

import re
from pathlib import Path
from typing import Any

import pytest

from hf_mabprune.cli.commands import main
from hf_mabprune.config import PruneConfig
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.preview import plan_run
from tests.problems import settings_for
from tests.tiny_models import tiny_model


def test_plan_names_arms_layouts_targets_time_and_memory(
    place: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"neurons": [0.25, 0.5], "heads": [0.25, 0.5]}
    settings = settings_for(place, data, "bert", prune={"target": target}, output={"dir": str(place / "none")})
    (place / "run.yaml").write_text(settings.to_yaml())
    assert main(["plan", "--config", str(place / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "arms: 12 of kind neuron, up to 8 FFN neurons each" in said
    assert "layout per_layer: loads after import hf_mabprune" in said
    assert "layout uniform: not possible: a stock bert config cannot say" in said
    assert "target neurons 0.5, heads 0.5: within reach, removes 48 of 96 neurons, 4 of 8 heads" in said
    (cheaper,) = re.findall(r"without pulls \(--search.criterion NAME\): (.*)", said)
    prices = re.findall(r"([\w, ]+) (\d+)k tokens, about \d+ s(?:; |$)", cheaper)
    assert sorted(name for names, _ in prices for name in names.split(", ")) == [
        name for name in CRITERIA.names() if CRITERIA.get(name).ranks(["neuron", "head"])
    ]
    assert [int(tokens) for _, tokens in prices] == sorted(int(tokens) for _, tokens in prices)
    assert not (place / "none").exists() and not (place / "none.state").exists()


def test_plan_counts_the_memory_of_refits(place: Path, data: dict[str, str]) -> None:
    def memory(compensation: str | None, rule: str) -> int:
        rounds = None if rule == "refit" else 2
        changes = {"search": {"rule": rule, "rounds": rounds}, "compensation": compensation}
        return plan_run(settings_for(place / "memory", data, "bert", **changes)).memory_bytes

    weights = tiny_model("bert", "AutoModelForSequenceClassification").get_memory_footprint()
    alone, with_gradients = memory(None, "single"), memory(None, "interactions")
    assert 2 * weights < alone < with_gradients < memory("least_squares", "refit")


def test_targets_are_within_reach_exactly_as_far_as_plan_says(place: Path, data: dict[str, str]) -> None:
    def settings(**prune: Any) -> PruneConfig:
        return settings_for(place / "llama", data, "llama", prune=prune)

    reach = plan_run(settings(layout="auto")).reach
    assert set(reach) == {"uniform", "per_layer"}
    for layout, largest in reach.items():
        assert set(largest) == {"parameters", "macs", "neurons", "heads"}
        for name, fraction in largest.items():
            asked = {"layout": layout, "arms": ["neuron", "head"]}
            assert plan_run(settings(target={name: fraction - 1e-9}, **asked)).pulls > 0
            if name in ("parameters", "macs"):
                with pytest.raises(ValueError, match="cannot be met"):
                    plan_run(settings(target={name: fraction + 0.02}, **asked))


def test_plan_names_layers_that_may_go(place: Path, data: dict[str, str]) -> None:
    settings = settings_for(place / "layers", data, "llama", output={"dir": str(place / "none")})
    whole = settings.model_dump() | {"prune": {"target": {"layers": 0.5}}, "search": {}}
    said = str(plan_run(PruneConfig.model_validate(whole).resolved()))
    assert "arms: 1 of kind layer, up to 1 layers each" in said
    assert "layout uniform: loads with plain AutoModel" in said and "removes 1 of 2 layers" in said
    floors = {**settings.prune.model_dump(), "min_heads": 0, "min_neurons": 0}
    said = str(plan_run(PruneConfig.model_validate(settings.model_dump() | {"prune": floors})))
    assert "layers that go where both of their blocks do: 1 of 2" in said

"""What a config refuses, in which words, and that it survives being written down."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_mabprune.config import PruneConfig, check, known_types
from hf_mabprune.effects.rewards import REWARDS


def settings(path: str | None = None, value: Any = None) -> dict[str, Any]:
    """The least that a config must say, with one dotted key set."""
    tree: dict[str, Any] = {
        "model": {"name": "bert-base-uncased"},
        "task": {"dataset": {"path": "glue", "name": "sst2"}},
        "prune": {"target": {"parameters": 0.3}},
        "output": {"dir": "runs/x"},
    }
    if path:
        *parents, key = path.split(".")
        part = tree
        for parent in parents:
            part = part.setdefault(parent, {})
        part[key] = value
    return tree


def message(tree: Any) -> str:
    with pytest.raises(ValueError) as error:
        check(tree)
    return str(error.value)


def test_defaults() -> None:
    config = check(settings())
    assert config.search.policy == {"name": "race"}
    assert (config.search.reward, config.search.rule, config.search.criterion) == ("kl", {"name": "refit"}, None)
    assert config.compensation == "least_squares"
    assert config.prune.arms == ["neuron", "head"]
    assert (config.prune.layout, config.prune.round_to) == ("auto", "auto")
    assert (config.task.splits.calibration, config.task.splits.validation) == ("train", "validation")
    assert config.output.overwrite is False


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("sed", "seed"),
        ("model.nam", "model.name"),
        ("task.batchsize", "task.batch_size"),
        ("task.dataset.data_file", "task.dataset.data_files"),
        ("task.splits.calibraton", "task.splits.calibration"),
        ("prune.target.neuron", "prune.target.neurons"),
        ("prune.block", "prune.block_size"),
        ("search.pulls", "search.pulls_per_arm"),
        ("output.directory", "output.dir"),
        ("recovery.epoch", "recovery.epochs"),
    ],
)
def test_unknown_keys_name_the_nearest_known_one(path: str, nearest: str) -> None:
    assert message(settings(path, 1)) == f"unknown key '{path}'. Did you mean '{nearest}'?"


def test_unknown_keys_like_no_known_one_get_no_guess() -> None:
    assert message(settings("model.qqqq", 1)) == "unknown key 'model.qqqq'."


@pytest.mark.parametrize("path", ["model.name", "task.dataset.path", "prune.target", "output.dir"])
def test_missing_keys_are_named(path: str) -> None:
    tree = settings()
    *parents, key = path.split(".")
    part = tree
    for parent in parents:
        part = part[parent]
    del part[key]
    assert message(tree) == f"missing key '{path}'"


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("seed", -1, "an integer >= 0"),
        ("seed", "x", "an integer >= 0"),
        ("task.batch_size", 0, "an integer > 0"),
        ("task.calibration_examples", 1.5, "an integer > 0"),
        ("task.max_length", 1, "an integer > 1, or null"),
        ("task.metrics", "accuracy", "a list of strings"),
        ("task.dataset.data_files", "x.parquet", "a mapping, or null"),
        ("model.dtype", "float8", "auto | float32 | bfloat16 | float16"),
        ("model.trust_remote_code", "perhaps", "true or false"),
        ("prune", 3, "a mapping"),
        ("prune.arms", [], "a non-empty list of neuron | head | expert | layer"),
        ("prune.block_size", 0, "an integer > 0, or null"),
        ("prune.layout", "uniforn", "auto | uniform | per_layer"),
        ("prune.auto_tolerance", -0.1, "a number >= 0"),
        ("prune.round_to", "x", "an integer, or auto"),
        ("prune.min_heads", -1, "an integer >= 0"),
        ("prune.target.parameters", 1.3, "a number > 0 and < 1, or a non-empty list of numbers > 0 and < 1, or null"),
        ("prune.target.parameters", 0.0, "a number > 0 and < 1, or a non-empty list of numbers > 0 and < 1, or null"),
        ("search.policy", "exp3", "a mapping"),
        ("search.reward", 3, "a string"),
        ("search.rounds", 0, "an integer > 0, or null"),
        ("search.pulls_per_arm", -1, "a number >= 0, or null"),
        ("output.random_seeds", -1, "an integer >= 0"),
    ],
)
def test_wrong_values_are_named_with_the_rule(path: str, value: Any, rule: str) -> None:
    assert message(settings(path, value)) == f"{path} must be {rule}, got {value!r}"


def test_every_fault_has_its_line() -> None:
    tree = settings("seed", -1) | {"search": {"rounds": 0, "roundz": 1}}
    assert message(tree).splitlines() == [
        "search.rounds must be an integer > 0, or null, got 0",
        "unknown key 'search.roundz'. Did you mean 'search.rounds'?",
        "seed must be an integer >= 0, got -1",
    ]


def test_a_config_is_a_mapping() -> None:
    assert message([1]) == "a config must be a mapping, got [1]"


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"neurons": None},
        {"neurons": 0.3, "parameters": 0.3},
        {"heads": 0.3, "macs": 0.3},
        {"layers": 0.3, "macs": 0.3},
        {"parameters": 0.3, "macs": 0.3},
    ],
)
def test_a_target_is_of_exactly_one_kind(target: dict[str, float]) -> None:
    assert message(settings("prune.target", target)) == (
        "prune.target: target must be one of: neurons, heads and / or experts, layers, parameters, "
        "layer_parameters, macs, bytes, memory, latency"
    )


@pytest.mark.parametrize("target", [{"neurons": 0.3}, {"heads": 0.5}, {"neurons": 0.3, "heads": 0.5}, {"macs": 0.1}])
def test_targets_of_one_kind(target: dict[str, float]) -> None:
    assert check(settings("prune.target", target)).prune.target.model_dump(exclude_none=True) == target


@pytest.mark.parametrize(("kind", "other"), [("neuron", "head"), ("head", "neuron")])
def test_a_target_needs_its_kind_of_arms(kind: str, other: str) -> None:
    pruning = {"arms": [other], "target": {f"{kind}s": 0.3}}
    assert message(settings("prune", pruning)) == f"prune: target.{kind}s is set, but arms does not contain {kind}"


def test_layers_go_alone_and_at_once() -> None:
    checked = check(settings("prune", {"target": {"layers": 0.25}}))
    assert checked.prune.kinds() == checked.prune.arms == ["layer"]
    assert checked.search.rule == {"name": "single"}
    assert check(settings("prune", {"arms": ["layer"], "target": {"macs": 0.25}})).prune.kinds() == ["layer"]
    for target in ({"macs": 0.25}, {"layers": 0.25, "neurons": 0.25}):
        said = message(settings("prune", {"arms": ["neuron", "layer"], "target": target}))
        assert "layers hold all other arms, so they go alone: set arms: [layer]" in said
    layers = settings("prune", {"target": {"layers": 0.25}})
    assert "search.rule refit is for what is inside of layers" in message(layers | {"search": {"rule": "refit"}})
    assert "recovery.stages must be 1 where layers go, got 2" in message(layers | {"recovery": {"stages": 2}})


def test_rounding_needs_a_multiple() -> None:
    assert "round_to must be at least 1, got 0" in message(settings("prune.round_to", 0))
    assert check(settings("prune.round_to", 32)).prune.round_to == 32


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 1),
        ({"search": {"pulls_per_arm": 0}}, 1),
        ({"search": {"pulls_per_arm": 1}}, 16),
        ({"search": {"criterion": "kfac_obs"}}, 1),
        ({"compensation": None}, 16),
        ({"search": {"rule": "single"}}, 16),
    ],
)
def test_neurons_go_one_by_one_unless_each_is_pulled(changes: dict[str, Any], size: int) -> None:
    tree = settings() | changes
    assert check(tree).prune.block_size == size
    assert check(tree | {"prune": {**tree["prune"], "block_size": 8}}).prune.block_size == 8


@pytest.mark.parametrize("policy", [{}, {"c": 1.0}, {"name": None}, {"name": 3}])
def test_a_policy_needs_a_name(policy: dict[str, Any]) -> None:
    assert "policy needs a name, e.g. {name: ucb1}" in message(settings("search.policy", policy))


@pytest.mark.parametrize("reward", REWARDS.names())
def test_every_reward_can_be_chosen(reward: str) -> None:
    assert check(settings("search.reward", reward)).search.reward == reward


def test_yaml_round_trip(tmp_path: Path) -> None:
    tree = settings() | {
        "prune": {"target": {"neurons": 0.5, "heads": 0.25}, "round_to": 64, "layout": "per_layer"},
        "search": {"policy": {"name": "exp3", "gamma": 0.3}, "pulls_per_arm": 2.5, "arms_per_step": 7},
        "seed": 11,
    }
    tree["task"] |= {"columns": {"text": "sentence"}, "max_length": 128, "metrics": ["accuracy", "f1"]}
    tree["task"]["dataset"]["data_files"] = {"train": ["a.parquet", "b.parquet"], "test": "c.parquet"}
    config = check(tree)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())

    assert PruneConfig.from_yaml(path) == config
    assert PruneConfig.from_yaml(path).task.dataset.data_files == tree["task"]["dataset"]["data_files"]
    parts = ["model", "task", "prune", "search", "compensation", "recovery", "output", "seed"]
    assert list(yaml.safe_load(config.to_yaml())) == parts


def test_the_file_may_be_empty_or_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match="must hold a mapping of settings, got an empty file"):
        PruneConfig.from_yaml(path)
    path.write_text("seed: 1")
    with pytest.raises(ValueError, match=r"missing key 'model'\nmissing key 'prune'"):
        PruneConfig.from_yaml(path)
    path.write_text(yaml.safe_dump(settings("search.raunds", 3)))
    with pytest.raises(ValueError, match=r"unknown key 'search.raunds'. Did you mean 'search.rounds'\?"):
        PruneConfig.from_yaml(path)


def test_a_checked_config_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        check(settings()).seed = 3  # type: ignore[misc]


def test_types_in_words_cover_every_key() -> None:
    types = known_types(PruneConfig)
    assert types["prune.target"] == "a mapping"
    assert types["prune.target.macs"] == "a number > 0 and < 1, or a non-empty list of numbers > 0 and < 1, or null"
    dumped = check(settings()).model_dump()
    leaves = {f"{part}.{key}" for part, values in dumped.items() if isinstance(values, dict) for key in values} | {
        "seed"
    }
    assert leaves <= set(types)


CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_configs_of_the_repository_are_valid(path: Path) -> None:
    assert PruneConfig.from_yaml(path).output.dir.startswith("runs/")

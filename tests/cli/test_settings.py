"""Files, overrides, messages and help of the command line."""

import re
from pathlib import Path
from typing import get_origin

import pytest
from pydantic import BaseModel

from hf_mabprune.cli.commands import main
from hf_mabprune.cli.settings import REGISTRIES, read_settings, settings_parser
from hf_mabprune.config import PruneConfig, known_types
from hf_mabprune.policies import POLICIES
from hf_mabprune.registry import describe_options

YAML = """
model: {name: bert-base-uncased}
task:
  dataset: {path: parquet, data_files: {train: a.parquet, test: t.parquet}}
prune: {target: {neurons: 0.5}}
search: {policy: {name: ucb1, c: 0.7, memory: 0.25}, rounds: 3}
output: {dir: runs/x}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


def message(*arguments: str) -> str:
    with pytest.raises(ValueError) as error:
        read_settings(arguments)
    return str(error.value)


def test_the_file_alone(file: str) -> None:
    config = read_settings(["--config", file])
    assert config == PruneConfig.from_yaml(file)
    assert config.search.policy == {"name": "ucb1", "c": 0.7, "memory": 0.25}


def test_dotted_options_override_the_file(file: str) -> None:
    config = read_settings(
        [
            *("--config", file, "--task.dataset.data_files.test", "x.parquet", "--task.columns.text=sentence"),
            *("--prune.arms", "[neuron]", "--prune.target.neurons", "0.25", "--task.metrics", "[accuracy, f1]"),
            *("--prune.round_to", "32", "--output.overwrite", "true", "--seed", "7"),
        ]
    )
    assert config.task.dataset.data_files == {"train": "a.parquet", "test": "x.parquet"}
    assert config.task.columns == {"text": "sentence"}
    assert config.prune.arms == ["neuron"]
    assert config.prune.target.neurons == 0.25
    assert config.task.metrics == ["accuracy", "f1"]
    assert config.prune.round_to == 32
    assert config.output.overwrite is True
    assert config.seed == 7
    assert config.search.rounds == 3


def test_lists_of_files_and_whole_parts(file: str) -> None:
    config = read_settings(["--config", file, "--task.dataset.data_files.test", "[x.parquet, y.parquet]"])
    assert config.task.dataset.data_files == {"train": "a.parquet", "test": ["x.parquet", "y.parquet"]}
    config = read_settings(["--config", file, "--task.dataset", "{path: csv, data_files: {train: b.csv}}"])
    assert (config.task.dataset.path, config.task.dataset.data_files["train"]) == ("csv", "b.csv")  # type: ignore[index]


def test_another_kind_of_target_takes_the_place_of_the_files(file: str) -> None:
    config = read_settings(["--config", file, "--prune.target.macs", "0.3"])
    assert config.prune.target.fractions() == {"macs": 0.3}
    config = read_settings(["--config", file, "--prune.target.heads", "0.3"])
    assert config.prune.target.fractions() == {"neurons": 0.5, "heads": 0.3}


def test_without_a_file() -> None:
    config = read_settings(
        ["--model.name", "m", "--task.dataset.path", "glue", "--prune.target.macs", "0.2", "--output.dir", "o"]
    )
    assert (config.model.name, config.prune.target.macs, config.search.policy) == ("m", 0.2, {"name": "race"})


def test_later_files_override_earlier_ones(file: str, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("search: {rounds: 5}")
    assert read_settings(["--config", file, "--config", str(second)]).search.rounds == 5


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        (["--search.policy.c", "1.5"], {"name": "ucb1", "c": 1.5, "memory": 0.25}),
        (["--search.policy.name", "ucb1"], {"name": "ucb1", "c": 0.7, "memory": 0.25}),
        (["--search.policy.name", "exp3"], {"name": "exp3"}),
        (["--search.policy.name=exp3"], {"name": "exp3"}),
        (["--search.policy.name", "exp3", "--search.policy.gamma", "0.3"], {"name": "exp3", "gamma": 0.3}),
        (["--search.policy.gamma=0.3", "--search.policy.name", "exp3"], {"name": "exp3", "gamma": 0.3}),
        (["--search.policy.name", "exp3", "--search.policy.memory", "0.1"], {"name": "exp3", "memory": 0.1}),
        (["--search.policy", "{name: hedge, eta: 0.1}"], {"name": "hedge", "eta": 0.1}),
        (["--search.policy", "{name: hedge, eta: 0.1}", "--search.policy.name", "exp3"], {"name": "exp3"}),
    ],
)
def test_another_policy_starts_from_its_own_defaults(file: str, arguments: list[str], policy: dict[str, str]) -> None:
    assert read_settings(["--config", file, *arguments]).search.policy == policy


@pytest.mark.parametrize(
    ("in_file", "arguments", "rule"),
    [
        ("", [], {"name": "interactions"}),
        ("", ["--search.rule", "single"], {"name": "single"}),
        ("", ["--search.rule.name", "single"], {"name": "single"}),
        ("", ["--search.rule.label_draws", "2"], {"name": "interactions", "label_draws": 2}),
        ("rule: {name: interactions, label_draws: 8}", ["--search.rule.name", "single"], {"name": "single"}),
        (
            "rule: {name: interactions, label_draws: 8}",
            ["--search.rule.label_draws", "2"],
            {"name": "interactions", "label_draws": 2},
        ),
        ("rule: single", ["--search.rule.name", "interactions"], {"name": "interactions"}),
    ],
)
def test_removal_rules_and_their_options(
    file: str, in_file: str, arguments: list[str], rule: dict[str, object]
) -> None:
    Path(file).write_text(YAML.replace("rounds: 3", f"rounds: 3, {in_file}" if in_file else "rounds: 3"))
    assert read_settings(["--config", file, *arguments]).search.rule == rule


@pytest.mark.parametrize(
    ("arguments", "criterion"),
    [
        (["--search.criterion", "kfac_obs"], "kfac_obs"),
        (["--search.criterion.name", "obs", "--search.criterion.damping", "0.1"], {"name": "obs", "damping": 0.1}),
        (["--search.criterion", "{name: flap, square_heads: true}"], {"name": "flap", "square_heads": True}),
    ],
)
def test_criteria_and_their_options(file: str, arguments: list[str], criterion: object) -> None:
    Path(file).write_text(YAML.replace(", rounds: 3", ""))
    settings = read_settings(["--config", file, *arguments])
    assert settings.search.criterion == criterion and settings.search.rule is None


def test_options_of_the_files_policy_can_be_overridden(file: str) -> None:
    Path(file).write_text(YAML.replace("{name: ucb1, c: 0.7, memory: 0.25}", "{name: exp3}"))
    config = read_settings(["--config", file, "--search.policy.gamma", "0.3"])
    assert config.search.policy == {"name": "exp3", "gamma": 0.3}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--search.raunds", "3"], "unknown key 'search.raunds'. Did you mean 'search.rounds'?"),
        (["--prune.targt.neurons", "0.3"], "unknown key 'prune.targt'. Did you mean 'prune.target'?"),
        (["--sede", "3"], "unknown key 'sede'. Did you mean 'seed'?"),
        (["--prune.target.neurons", "1.3"], "prune.target.neurons must be a number > 0 and < 1, or a non-empty list"),
        (["--search.rounds", "0"], "search.rounds must be an integer > 0, or null, got 0"),
        (["--search.rounds", "few"], "search.rounds must be an integer > 0, or null, got 'few'"),
        (["--search.policy", "exp3"], "search.policy must be a mapping, got 'exp3'"),
        (["--prune.layout", "uniforn"], "prune.layout must be auto | uniform | per_layer, got 'uniforn'"),
        (
            ["--prune.arms", "neuron"],
            "prune.arms must be a non-empty list of neuron | head | expert | layer, got 'neuron'",
        ),
        (["--prune.round_to", "x"], "prune.round_to must be an integer, or auto, got 'x'"),
        (["--task.max_length", "0"], "task.max_length must be an integer > 1, or null, got 0"),
        (["--prune.target", "{macs: 0.2, heads: 0.1}"], "target must be one of: neurons, heads and / or experts"),
        (["--prune.round_to", "0"], "round_to must be at least 1, got 0"),
        (["--seed"], "--seed needs a value"),
        (["quickly"], "unrecognized argument 'quickly'"),
    ],
)
def test_faults_of_overrides(file: str, arguments: list[str], expected: str) -> None:
    text = message("--config", file, *arguments)
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("rounds: 3", "raunds: 3", "unknown key 'search.raunds'. Did you mean 'search.rounds'?"),
        ("neurons: 0.5", "neurons: 1.5", "prune.target.neurons must be a number > 0 and < 1, or a non-empty list"),
        ("output: {dir: runs/x}", "", "missing key 'output'"),
        ("rounds: 3}", "rounds: 3", "is no YAML: while parsing a flow mapping"),
        ("rounds: 3", "reward: 3", "search.reward must be a string, got 3"),
    ],
)
def test_faults_of_the_file(file: str, old: str, new: str, expected: str) -> None:
    Path(file).write_text(YAML.replace(old, new))
    text = message("--config", file)
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config", "nope.yaml"], "nope.yaml"),
        (["--config", "FILE", "--search.policy.name", "ucb2"], "unknown policy 'ucb2'. Did you mean 'ucb1'? Known: "),
        (["--config", "FILE", "--search.policy.gamma", "0.3"], "policy 'ucb1' has no option 'gamma'"),
        (["--config", "FILE", "--search.policy.memory", "2"], "memory must be in [0, 1], got 2"),
        (["--config", "FILE", "--search.rule", "singel"], "unknown removal rule 'singel'. Did you mean 'single'?"),
        (["--config", "FILE", "--search.rule.label_draws", "0"], "label_draws must be at least 1, got 0"),
        (["--config", "FILE", "--search.rule.moves", "3"], "rule 'interactions' has no option 'moves'"),
        (["--config", "FILE", "--search.rounds", "null", "--search.criterion", "kfac"], "unknown criterion 'kfac'"),
        (["--config", "FILE", "--search.refit", "true"], "search.refit is no setting any more: write search.rule"),
        (["--config", "FILE", "--search.moves", "8"], "search.moves is no setting any more: write search.rule"),
        (["--config", "FILE", "--task.type", "chess"], "unknown task 'chess'. Known: answer, causal_lm, "),
        (["--config", "FILE", "--task.max_length", "0", "--task.batch_size", "-1"], "task.batch_size must be"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    file: str, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", *(file if argument == "FILE" else argument for argument in arguments)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("mabprune: ")
    assert expected in line
    assert captured.out == ""


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prone"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("mabprune: ") and "prune" in line


def described(part: type[BaseModel] = PruneConfig, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted path and description of every key."""
    found = []
    for name, field in part.model_fields.items():
        found.append((prefix + name, field.description or ""))
        if get_origin(field.annotation) is None and issubclass(field.annotation, BaseModel):
            found += described(field.annotation, f"{prefix}{name}.")
    return found


def squeezed(text: str) -> str:
    """Without spaces and line breaks, which the help puts in anywhere."""
    return re.sub(r"\s", "", text)


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prune", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(described()) > 40
    for path, description in described():
        assert f"--{path} " in text, path
        assert description and squeezed(description) in squeezed(text), path


HELPED = (
    "recovery.",
    "prune.vocabulary.",
    "prune.promise.",
    "prune.target.memory.",
    "prune.target.latency.",
)  # parts with a help of their own, --recovery.help


def test_help_names_types_in_words() -> None:
    text = settings_parser().format_help()
    for ugly in ("FieldInfo", "Annotated", "Optional", "Literal", "Union", "%("):
        assert ugly not in text, ugly
    leaves = {
        path: words
        for path, words in known_types(PruneConfig).items()
        if "a mapping" not in words and not path.startswith(HELPED)
    }
    for path, words in leaves.items():
        assert squeezed(words) in squeezed(text), path
    fractions = "a number > 0 and < 1, or a non-empty list of numbers > 0 and < 1, or null"
    assert squeezed(f"removed ({fractions}, default: null)") in squeezed(text)


def test_help_lists_every_policy_with_its_options() -> None:
    text = settings_parser().format_help()
    _, _, policies = text.partition("policies (search.policy) and their options:\n")
    for name in POLICIES.names():
        assert f"\n  {name}\n" in f"\n{policies}"
        for option, default, description in describe_options(POLICIES.get(name)):
            assert squeezed(f"{option}: {description} (default: {default})") in squeezed(policies)


def test_help_lists_everything_that_is_registered() -> None:
    text = settings_parser().format_help()
    for title, registry in REGISTRIES.items():
        _, found, listed = text.partition(title)
        assert found
        for name in registry.names():
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", listed.partition("\n\n")[0]), name

"""Whatever a command line or a file of settings holds, the outcome is settings, or one line of what is wrong."""

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_mabprune.cli.commands import main
from hf_mabprune.cli.settings import read_run_config, read_settings
from hf_mabprune.config import PruneConfig, check, known_types

YAML = """
model: {name: bert-base-uncased}
task:
  dataset: {path: parquet, data_files: {train: a.parquet, test: t.parquet}}
prune: {target: {neurons: 0.5}}
search: {policy: {name: ucb1, c: 0.7}, rounds: 3}
output: {dir: runs/x}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "{model: {name: x}}"], "no config file '{model: {name: x}}'"),
        (["--config", "."], "is a folder: give a YAML file"),
        (["--config", ""], "is a folder: give a YAML file"),
        (["--config"], "--config needs a value"),
        (["--config="], "is a folder: give a YAML file"),
        (["--model", "null"], "model must be a mapping, got None"),
        (["--model", "x"], "model must be a mapping, got 'x'"),
        (["--search", "[1]", "--search.rounds", "2"], "--search.rounds: search must be a mapping, got [1]"),
        (["--search.policy", "{name: ucb1, name: exp3}"], "--search.policy, line 1: the key 'name' is there twice"),
        (["--search.policy", "!!python/object:x {}"], "is not allowed: a config is plain data"),
        (["--search.policy.c", "[" * 9999], "nested more than 32 levels deep"),
        (["--search.rounds", "true"], "search.rounds must be an integer > 0, or null, got True"),
        (["--search.rounds", "'3'"], "search.rounds must be an integer > 0, or null, got '3'"),
        (["--search.rounds", "1e400"], "'1e400' is no finite number"),
        (["--search.rounds", "999999999"], "rounds must be at most 100,000"),
        (["--seed", "yes"], "seed must be an integer >= 0, got True"),
        (["--seed", str(2**70)], "seed is too large"),
        (["--seed", "-0.0"], "seed must not be -0.0"),
        (["--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["--seed="], "seed must be an integer >= 0, got None"),
        (["--seed", "--model.name", "x"], "--seed needs a value"),
        (["--output.overwrite", "1"], "output.overwrite must be true or false, got 1"),
        (["--task.batch_size", ".inf"], "'.inf' is no finite number"),
        (["--prune.target", "x"], "prune.target must be a mapping, got 'x'"),
        (["--prune.target", "{neurons: true}"], "prune.target.neurons must be a number"),
        (["--prune.target.neurons.x", "1"], "--prune.target.neurons.x: neurons must be a mapping, got 0.5"),
        (["--task.columns.text="], "task.columns: must not be an empty string"),
        (["--model.name", ""], "model.name: must not be an empty string"),
        (["--model.", "x"], "unknown key 'model.'"),
        (["--model..name", "x"], "unknown key 'model.'"),
        (["--", "x"], "unrecognized argument '--'"),
        (["-x", "1"], "unrecognized argument '-x'"),
        (["--resume=yes"], "--resume takes no value"),
        (["--rounds", "2"], "unknown key 'rounds'. Did you mean 'search.rounds'?"),
        (["--model.name", "a\0b"], "model.name must be text in UTF-8 without NUL characters"),
        (["--model.name", "a\udc80"], "model.name must be text in UTF-8"),
        (["--x\n\x1b[31m", "y"], "unrecognized argument '--x; \ufffd[31m'"),
    ],
)  # fmt: skip
def test_peculiar_options_are_refused_in_one_line(
    file: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", "--config", file, *arguments]) == 2
    output = capsys.readouterr()
    assert says in output.err and output.err.startswith("mabprune: ") and output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (YAML + "seed: 1\nseed: 2\n", "line 9: the key 'seed' is there twice"),
        (YAML + "resume: true\n", "'resume' is for the command line, --resume"),
        (YAML + "config: x.yaml\n", "'config' is for the command line, --config"),
        (YAML + "plugin: x.py\n", "'plugin' is for the command line, --plugin"),
        (YAML + "1: 2\n", "a key must be a string, got '1'"),
        (YAML + "seed: 010\n", "seed must be an integer >= 0, got '010'"),
        (YAML + "seed: 1:30\n", "seed must be an integer >= 0, got '1:30'"),
        (YAML + "recovery: true\n", "recovery must be a mapping, or null, got True"),
        (YAML + "compensation: 3\n", "compensation must be"),
        (YAML.replace("rounds: 3", "rounds: true"), "search.rounds must be an integer > 0, or null, got True"),
        (YAML.replace("rounds: 3", "pulls_per_arm: '2'"), "pulls_per_arm must be a number >= 0, or null, got '2'"),
        (YAML.replace("c: 0.7", "c: true"), "policy 'ucb1': c: must be float, got True"),
        (YAML.replace("c: 0.7", "c: [1"), "is no YAML"),
        (YAML.replace("name: ucb1, c: 0.7", "name: [ucb1]"), "policy needs a name, e.g. {name: ucb1}"),
        (YAML.replace("bert-base-uncased", "''"), "model.name: must not be an empty string"),
        (YAML.replace("a.parquet", "[]"), "data_files"),
        (YAML + "compensation: {name: [x]}\n", "unknown compensation '['x']'"),
    ],
)  # fmt: skip
def test_peculiar_files_are_refused_in_one_line(
    file: str, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(text)
    assert main(["prune", "--config", file]) == 2
    output = capsys.readouterr()
    assert says in output.err and output.err.count("\n") == 1 and output.out == ""


def test_names_that_look_like_numbers_are_names_on_a_command_line(file: str) -> None:
    config = read_settings(["--config", file, "--model.name", "2024", "--task.dataset.data_files.test", "1.5"])
    assert config.model.name == "2024" and config.task.dataset.data_files == {"train": "a.parquet", "test": "1.5"}
    config = read_settings(
        ["--config", file, "--model.name", "-x", "--model.revision=null", "--task.columns.text", "[a"]
    )
    assert (config.model.name, config.model.revision, config.task.columns) == ("-x", None, {"text": "[a"})


def test_what_comes_later_wins(file: str, tmp_path: Path) -> None:
    (tmp_path / "second.yaml").write_text("{search: {policy: {name: exp3}}, model: {dtype: float32}}")
    config = read_settings(["--config", file, "--seed", "1", "--config", str(tmp_path / "second.yaml"), "--seed", "2"])
    assert config.seed == 2 and config.search.policy == {"name": "exp3"}
    assert (config.model.name, config.model.dtype, config.search.rounds) == ("bert-base-uncased", "float32", 3)


def test_parts_that_may_be_left_out_can_be_set_by_key(file: str) -> None:
    config = read_settings(["--config", file, "--recovery.epochs", "0.5", "--recovery.lora_rank", "4"])
    assert config.recovery is not None and (config.recovery.epochs, config.recovery.lora_rank) == (0.5, 4)
    assert read_settings(["--config", file, "--compensation", "null"]).compensation is None


@pytest.mark.parametrize("option", ["--help", "-h", "--recovery.help"])
def test_help_is_shown_wherever_it_is_asked_for(file: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prune", "--config", file, option])
    assert end.value.code == 0
    assert "--recovery" in capsys.readouterr().out


def test_home_folders_are_found_once(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/jo")
    paths = ["--model.name", "~/m", "--task.dataset.data_files", "{train: [~/a, b/~/c]}", "--output.log_dir", "~/logs"]
    config = read_settings(["--config", file, *paths, "--task.dataset.path", "~/d"])
    assert (config.model.name, config.output.log_dir, config.task.dataset.path) == (
        "/home/jo/m",
        "/home/jo/logs",
        "/home/jo/d",
    )
    assert config.task.dataset.data_files == {"train": ["/home/jo/a", "b/~/c"]}
    assert check(config.model_dump()) == config


def test_a_hostile_config_in_a_run_keeps_nobody_busy(tmp_path: Path) -> None:
    (tmp_path / "mabprune").mkdir()
    path = tmp_path / "mabprune" / "config.yaml"
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    for text in (bomb, "[" * 10**5, "model: *x", "model: !!python/name:os.system", "a: 1\na: 2", "[]", "", "\0"):
        path.write_text(text)
        with pytest.raises(ValueError) as error:
            read_run_config(str(tmp_path))
        assert str(path) in str(error.value) and "\n" not in str(error.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["ucb1", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = sorted(known_types(PruneConfig))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*KEYS, "search.policy.c", "resume"]), VALUES, max_size=4))
def test_any_values_are_settings_or_one_line(tmp_path: Path, values: dict[str, object]) -> None:
    tree = yaml.safe_load(YAML)
    for key, value in values.items():
        *path, last = key.split(".")
        part = tree
        for step in path:
            part = part[step] if isinstance(part.get(step), dict) else part.setdefault(f"{step}_", {})
        part[last] = value
    with suppress(ValueError):
        config = check(tree)
        (tmp_path / "written.yaml").write_text(config.to_yaml())
        assert PruneConfig.from_yaml(tmp_path / "written.yaml").stored() == config.stored()
    for key, value in values.items():
        with suppress(ValueError):
            read_settings([f"--{key}", str(value)])
        with suppress(ValueError, OSError):
            read_settings(["--config", str(value), f"--{key}={value!r}"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60) | st.lists(st.sampled_from([*"[]{}:,-&*!\n \t'\"#", *YAML.split(), YAML])).map(" ".join))
def test_any_text_is_settings_or_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "any.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(ValueError):
        PruneConfig.from_yaml(tmp_path / "any.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "x"],
        ["push", "x", "a/b", "c"],
        ["push"],
        ["cut"],
        ["evaluate"],
        ["cut", "x"],
        ["evaluate", "x", "--config"],
    ],
    ids=" ".join,
)
def test_arguments_that_are_missing_or_too_many_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.err.startswith("mabprune: ") and output.err.count("\n") == 1 and output.out == ""

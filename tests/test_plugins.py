"""Components from elsewhere: files that the user names, and plugins of installed packages."""

import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, ErnieConfig, ErnieForSequenceClassification

from hf_mabprune import plugins
from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.cli.commands import COMMANDS, main
from hf_mabprune.cli.settings import Arguments
from hf_mabprune.criteria import CRITERIA
from hf_mabprune.policies import POLICIES
from hf_mabprune.runtime.signals import Interrupted
from hf_mabprune.tasks.base import TASKS
from tests.problems import apart, settings_for

PLUGIN = """
from dataclasses import dataclass

import numpy as np

from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.criteria import CRITERIA, Criterion
from hf_mabprune.policies import POLICIES, Policy
from hf_mabprune.registry import option
from hf_mabprune.tasks.base import TASKS


@ARCHITECTURES.register("ernie")
class Ernie(ARCHITECTURES.get("bert")):
    pass


@TASKS.register("tone")
class Tone(TASKS.get("sequence_classification")):
    asked_for_by_name = True


@POLICIES.register("last_first")
@dataclass(kw_only=True)
class LastFirst(Policy):
    step: int = option(1, "how far apart the arms are that are pulled one after the other")

    def select(self, k):
        return self.largest(-self.pulls + np.arange(self.arms) / self.arms, k)


@CRITERIA.register("first_first")
@dataclass(kw_only=True)
class FirstFirst(Criterion):
    passes = (0, 0)

    def scores(self, statistics):
        return 1.0 + np.arange(len(statistics.arms))
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose plugins are forgotten after the test."""
    with apart(tmp_path):
        yield tmp_path


def write(folder: Path, text: str = PLUGIN, name: str = "mine.py") -> str:
    """Writes a plugin, and gives its path."""
    (folder / name).write_text(text)
    return str(folder / name)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Installs a package `acme` with a plugin, as far as Python can tell."""
    information = folder / "acme_pruning-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-pruning\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[hf_mabprune.plugins]\nfor_fun = acme_pruning\n")
    write(folder, text, "acme_pruning.py")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(plugins, "_looked_up", False)


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command has left on stderr."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


def ernie_run(folder: Path, files: dict[str, str], **search: Any) -> list[str]:
    """Options of a small run on a model of a type that only the plugin knows."""
    file = folder / "run.yaml"
    file.write_text(settings_for(folder, files, "bert", search=search).to_yaml())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = ErnieConfig(vocab_size=64, max_position_embeddings=64, pad_token_id=0, **sizes)
    ErnieForSequenceClassification(config).save_pretrained(folder / "model")
    return ["--config", str(file)]


def test_plan_sees_what_a_plugin_registers(
    place: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*ernie_run(place, files), "--search.policy.name", "last_first", "--task.type", "tone"]
    assert main(["plan", *run]) == 2
    assert "unknown policy 'last_first'. Known: " in (line := line_of(capsys))
    assert line.endswith("; one of a plugin needs --plugin FILE (in Python: import it first)")
    assert main(["plan", *run[:2]]) == 2
    assert "model type 'ernie' is not supported yet. Adding it is one file" in line_of(capsys)

    assert main(["plan", *run, "--plugin", write(place), "--search.policy.step", "2"]) == 0
    said = capsys.readouterr().out
    assert "ernie | 2 layers" in said and "first_first" in said


def test_help_lists_what_a_plugin_registers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", f"--plugin={write(place)}", "--help"])
    text = capsys.readouterr().out
    assert "--plugin FILE" in text and "how far apart the arms are" in text
    assert "first_first" in text and "tone" in text


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_run_and_what_is_made_of_it_need_the_plugin(
    place: Path, files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 20)
    plugin = ["--plugin", write(place)]
    choice = ["--search.policy.name", "last_first", "--task.type", "tone", "--compensation", "null"]
    with apart(place):
        assert main(["prune", *ernie_run(place, files), *choice, *plugin]) == 0
        _, report = RunFolder(place / "out").read()
        assert (report.architecture, report.task, report.search.policy["name"]) == ("ernie", "tone", "last_first")
        model = AutoModelForSequenceClassification.from_pretrained(place / "out")
        assert type(model).__name__ == "MabpruneErnieForSequenceClassification"

    cut = ["cut", str(place / "out"), "--target.neurons", "0.25", "--output.dir", str(place / "cut")]
    evaluate = ["evaluate", str(place / "out")]
    push = ["push", str(place / "out"), "me/ernie"]
    capsys.readouterr()
    with apart(place):
        for command, unknown in ((cut, "policy 'last_first'"), (evaluate, "type 'ernie'"), (push, "task 'tone'")):
            assert main(command) == 2
            assert unknown in (line := line_of(capsys)) and "--plugin FILE" in line
    with apart(place):
        assert main([*cut, *plugin]) == 0
        assert main([*evaluate, *plugin]) == 0
    capsys.readouterr()


@pytest.mark.whole
@pytest.mark.usefixtures("without_figures")
def test_a_criterion_of_a_plugin_chooses(place: Path, files: dict[str, str]) -> None:
    run = ernie_run(place, files, criterion="first_first", rounds=None)
    assert main(["prune", *run, "--plugin", write(place)]) == 0
    arms, report = RunFolder(place / "out").read()
    assert report.search.criterion == "first_first" and report.search.pulls == 0
    neurons = arms[(arms["kind"] == "neuron")]
    assert not neurons["kept"][neurons["layer"] == 0][:-1].any(), "the first go first, up to the floor of a layer"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def half(:\n", "SyntaxError: "),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (PLUGIN.replace('"last_first"', '"ucb1"'), "ValueError: policy 'ucb1' is registered twice: in "),
    ],
)
@pytest.mark.parametrize("command", ["prune", "plan", "cut", "evaluate", "push"])
def test_a_plugin_that_cannot_be_imported_is_named(
    command: str, text: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(place, text)
    assert main([command, "--plugin", file]) == 2
    assert (line := line_of(capsys)).startswith(f"mabprune: plugin {file} cannot be imported: {says}")
    assert "twice" not in says or ("policies/ucb1.py and in " in line and line.endswith("/mine.py"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plugin", "nowhere.py"], "plugin nowhere.py cannot be imported: there is no such file"),
        (["--plugin", "no.such"], "plugin no.such cannot be imported: ModuleNotFoundError: No module named 'no'"),
        (["--plugin"], "argument --plugin: expected one argument"),
    ],
)
def test_a_plugin_that_is_not_there_is_named(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) == 2
    assert says in line_of(capsys)


def test_no_config_names_a_plugin(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, says in (("plugin", "'plugin' is for the command line"), ("plugins", "unknown key 'plugins'")):
        (place / "run.yaml").write_text(f"{key}: [{write(place)}]\n")
        assert main(["plan", "--config", str(place / "run.yaml")]) == 2
        assert says in line_of(capsys)
    assert "last_first" not in POLICIES.names()


def test_the_plugin_of_the_documentation_works(place: Path) -> None:
    section = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().partition("## Plugins")[2]
    plugins.load_plugin(write(place, section.partition("```python\n")[2].partition("```")[0]))
    assert list(POLICIES.get("fewest_first")(arms=3).select(3)) == [0, 1, 2]


def test_an_interrupted_run_goes_on_with_its_plugins(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(arguments: Arguments) -> str:
        raise Interrupted(signal.SIGINT, f"mabprune {' '.join(arguments)} --resume")

    monkeypatch.setitem(COMMANDS, "prune", stop)
    assert main(["prune", "--plugin", write(place), "--config", "x.yaml"]) == 128 + signal.SIGINT
    assert line_of(capsys).endswith(f"go on with: mabprune --config x.yaml --resume --plugin {place}/mine.py")


def test_a_plugin_is_imported_once(place: Path) -> None:
    file = write(place, f"{PLUGIN}\nfrom pathlib import Path\nPath('{place}/trace').open('a').write('x')\n")
    plugins.load_plugin(file)
    plugins.load_plugin(file)
    assert (place / "trace").read_text() == "x"


def test_a_dotted_name_is_a_plugin_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "acme").mkdir()
    write(place / "acme", name="__init__.py", text="")
    write(place / "acme", name="arms.py")
    monkeypatch.syspath_prepend(place)
    plugins.load_plugin("acme.arms")
    assert "last_first" in POLICIES.names() and "ernie" in ARCHITECTURES.names()


def test_plugins_of_installed_packages_are_loaded_at_the_first_look_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(place, monkeypatch, PLUGIN)
    assert "acme_pruning" not in sys.modules
    monkeypatch.setattr(POLICIES, "_discovered", False)
    assert "last_first" in POLICIES.names()
    assert "first_first" in CRITERIA.names() and "tone" in TASKS.names() and "ernie" in ARCHITECTURES.names()


def test_an_installed_plugin_that_cannot_be_imported_is_left_out_with_a_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(place, monkeypatch, "import no_such_module")
    monkeypatch.setattr(POLICIES, "_discovered", False)
    with caplog.at_level(logging.WARNING):
        assert "ucb1" in POLICIES.names()
        monkeypatch.setattr(CRITERIA, "_discovered", False)
        assert "obs" in CRITERIA.names()
    (record,) = caplog.records
    assert record.getMessage() == (
        "hf_mabprune: plugin 'for_fun' of package acme-pruning cannot be imported, so what it registers is missing: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )

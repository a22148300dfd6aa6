"""Discovery, names and options of components."""

import importlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import hf_mabprune
from hf_mabprune.architectures import ARCHITECTURES
from hf_mabprune.cli.settings import REGISTRIES
from hf_mabprune.registry import Registry, check_options, describe_options, nearest

MODULE = """
from {package} import FRUIT

@FRUIT.register("{name}", "{name}_tree")
class Entry:
    text = "{name}"
"""


@pytest.fixture
def fruit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """A registry over a package on disk with two modules."""
    package = "fruit_of_registry_test"
    folder = tmp_path / package
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from hf_mabprune.registry import Registry\nFRUIT = Registry('fruit', '{package}')\n"
    )
    for name in ("cherry", "apple"):
        (folder / f"{name}.py").write_text(MODULE.format(package=package, name=name))
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.startswith(package)]:
        monkeypatch.delitem(sys.modules, module)
    registry: Registry[Any] = __import__(package).FRUIT
    return registry


@dataclass
class Machine:
    arms: int
    speed: float = field(default=0.5, metadata={"help": "how fast"})
    mode: Literal["slow", "fast"] = field(default="slow", metadata={"help": "which way"})
    steps: int | None = field(default=None, metadata={"help": "how long"})
    loud: bool = field(default=False, metadata={"help": "whether to sing"})


def test_what_lies_in_the_folder_is_found(fruit: Registry[Any]) -> None:
    assert fruit.names() == ["apple", "apple_tree", "cherry", "cherry_tree"]
    assert fruit.get("apple_tree") is fruit.get("apple")
    assert fruit.get("cherry").text == "cherry"


def test_unknown_names_list_the_known_and_the_nearest(fruit: Registry[Any]) -> None:
    with pytest.raises(ValueError) as error:
        fruit.get("aple")
    assert str(error.value) == (
        "unknown fruit 'aple'. Did you mean 'apple'? Known: apple, apple_tree, cherry, cherry_tree; one of a plugin "
        "needs --plugin FILE (in Python: import it first)"
    )
    with pytest.raises(ValueError, match=r"unknown fruit 'qqq'. Known: apple, "):
        fruit.get("qqq")
    fruit.unknown = "no {name} in {known}"
    with pytest.raises(ValueError, match=r"^no qqq in apple, apple_tree, cherry, cherry_tree$"):
        fruit.get("qqq")


def test_a_registry_may_say_in_its_own_words_what_is_unknown(fruit: Registry[Any]) -> None:
    fruit.unknown = "no {kind} '{name}' yet, only {known}{nearest}"
    with pytest.raises(ValueError, match=r"^no fruit 'plum' yet, only apple, apple_tree, cherry, cherry_tree$"):
        fruit.get("plum")


def test_a_name_is_taken_once(fruit: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="fruit 'plum' is registered twice"):
        fruit.register("plum", "plum")(Machine)
    fruit.register("pear")(Machine)
    with pytest.raises(ValueError, match=r"fruit 'pear' is registered twice: in \S+test_registry.py and in "):
        fruit.register("pear")(Machine)
    assert fruit.get("pear") is Machine
    with pytest.raises(ValueError, match=r"fruit 'apple' is registered twice: in \S+apple.py and in \S+test_registry"):
        fruit.register("apple")(Machine)


@pytest.mark.parametrize("registry", REGISTRIES.values(), ids=lambda registry: registry.package)
def test_every_file_of_an_open_folder_that_registers_something_is_found(registry: Registry[Any]) -> None:
    homes = {registry.get(name).__module__ for name in registry.names()}
    folder = Path(str(importlib.import_module(registry.package).__file__)).parent
    marked = {path.stem for path in folder.glob("*.py") if re.search(r"^@[A-Z]+\.register\(", path.read_text(), re.M)}
    assert homes == {f"{registry.package}.{name}" for name in marked}


def test_nearest() -> None:
    assert nearest("roundz", ["rounds", "policy"]) == " Did you mean 'rounds'?"
    assert nearest("xyz", ["rounds", "policy"]) == ""


def test_options_take_the_types_of_their_fields() -> None:
    options = {"speed": 1, "mode": "fast", "steps": 3.0, "loud": True}
    checked = check_options("machine", "m", Machine, options)
    assert checked == {"speed": 1.0, "mode": "fast", "steps": 3, "loud": True}
    assert (type(checked["speed"]), type(checked["steps"])) == (float, int)
    assert check_options("machine", "m", Machine, {"steps": None}) == {"steps": None}
    assert check_options("machine", "m", Machine, {}) == {}


@pytest.mark.parametrize("option", ["sped", "arms"])
def test_only_fields_with_a_help_text_are_options(option: str) -> None:
    guess = " Did you mean 'speed'?" if option == "sped" else ""
    with pytest.raises(ValueError) as error:
        check_options("machine", "m", Machine, {option: 1})
    assert str(error.value) == f"machine 'm' has no option '{option}'.{guess} Its options: loud, mode, speed, steps"


def test_components_without_options_say_so() -> None:
    @dataclass
    class Plain:
        arms: int = 1

    with pytest.raises(ValueError, match=r"plain 'p' has no option 'x'. Its options: none"):
        check_options("plain", "p", Plain, {"x": 1})


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("speed", "much", "speed: Input should be a valid number, unable to parse string as a number, got 'much'"),
        ("mode", "medium", "mode: Input should be 'slow' or 'fast', got 'medium'"),
        ("steps", 1.5, "got 1.5"),
        ("speed", True, "speed: must be float, got True"),
        ("speed", "0.25", "speed: must be float, got '0.25'"),
        ("loud", 1, "loud: must be bool, got 1"),
    ],
)
def test_options_of_the_wrong_type_are_refused(option: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError) as error:
        check_options("machine", "m", Machine, {option: value})
    assert str(error.value).startswith(f"machine 'm': {option}: ")
    assert rule in str(error.value)


def test_options_are_described_in_order() -> None:
    assert describe_options(Machine) == [
        ("speed", 0.5, "how fast"),
        ("mode", "slow", "which way"),
        ("steps", None, "how long"),
        ("loud", False, "whether to sing"),
    ]


def test_a_family_is_one_file() -> None:
    """No other file of the package names a model type; which count positions from the padding is a fact apart."""
    folder = Path(hf_mabprune.__file__).parent
    texts = {path: path.read_text() for path in folder.rglob("*.py") if path.name != "positions.py"}
    for name in ARCHITECTURES.names():
        home = folder / "architectures" / f"{ARCHITECTURES.get(name).__module__.rpartition('.')[2]}.py"
        strangers = [path for path, text in texts.items() if f'"{name}"' in text and path != home]
        assert not strangers, f"{name} is named in {strangers}"

"""One thread a test process, and a process that it starts, unless the environment says otherwise; and quiet."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported: they read it then
os.environ.setdefault("OPENBLAS_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("MKL_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MABPRUNE_PROGRESS", "off")  # what a command says must not depend on how long it takes

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from hf_mabprune import progress
from hf_mabprune.plugins import load_plugin
from tests.problems import write_splits
from tests.shows import Shows
from tests.watched import Watched

# Property tests try the same examples every time, so that the suite passes or fails for what was changed;
# HYPOTHESIS_PROFILE=search looks for new ones.
NO_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile(
    "same", max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=NO_CHECKS
)
settings.register_profile("search", settings.get_profile("same"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --plugin FILE, for contract tests run over every registered name, so over what a plugin registers too; and
    --shows, for the table of families."""
    parser.addoption("--plugin", action="append", default=[], metavar="FILE", help="load components of your own first")
    parser.addoption("--shows", action="store_true", help="run only what shows something of every model type")


def pytest_configure(config: pytest.Config) -> None:
    """Loads the plugins before any test is collected, as the commands do."""
    for plugin in config.getoption("plugin"):
        load_plugin(plugin)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files with whole runs come first, for what is long must not begin last; a worker takes a file at a time."""
    if config.getoption("shows"):
        items[:] = [item for item in items if "shows" in getattr(item, "fixturenames", ())]
    whole = {item.path for item in items if item.get_closest_marker("whole")}
    items.sort(key=lambda item: item.path not in whole)


@pytest.fixture(autouse=True, scope="session")
def quiet_and_small() -> None:
    """As many threads as were asked for, whoever imported torch first, and no progress bars among the dots."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no figures, which take a third of a small run; for tests that look at something else."""
    monkeypatch.setattr("hf_mabprune.artifacts.plots.save_figures", lambda *_: [])


@pytest.fixture
def shows(record_property: Callable[[str, object], None]) -> Shows:
    """Notes what a test shows of a model type, for the table of families."""
    return Shows(record_property)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """The display of progress of this process, with a clock of ours."""
    display = Watched()
    monkeypatch.setattr(progress, "_shared", display)
    monkeypatch.delenv(progress.SWITCH, raising=False)
    return display


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Three parquet files of sentences."""
    return write_splits(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tests of a file share."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def data(place: Path) -> dict[str, str]:
    """Three parquet files of sentences in the folder of the file."""
    return write_splits(place)

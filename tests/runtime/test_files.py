"""What a run may delete: its own earlier output and its own leftovers, nothing else."""

import json
import os
from pathlib import Path

import pytest

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.config import PruneConfig, check
from hf_mabprune.runtime.files import MARK, atomic_folder, clear_leftovers, refuse_other_files, remove_files
from hf_mabprune.runtime.places import Protected, check_output_dir, protected_by


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Name -> content of every file, None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def write_output(folder: Path, content: str = "weights") -> None:
    """A finished output."""
    with atomic_folder(folder) as work:
        (work / "mabprune").mkdir()
        (work / "config.json").write_text(content)
        (work / "mabprune" / "report.json").write_text("{}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder like a home: keys, a thesis, a hidden folder, a model."""
    home = tmp_path / "home"
    for name in (".ssh/id_ed25519", "thesis/thesis.tex", "model/config.json", "data/train.parquet"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"the only copy of {name}")
    return home


def settings(home: Path, output: Path, **dataset: object) -> PruneConfig:
    files = {"train": str(home / "data" / "train.parquet"), "test": str(home / "data" / "t*.parquet")}
    return check(
        {
            "model": {"name": str(home / "model")},
            "task": {"dataset": {"path": "parquet", "data_files": files, **dataset}},
            "prune": {"target": {"neurons": 0.5}},
            "output": {"dir": str(output), "overwrite": True},
        }
    )


def test_an_output_is_replaced_whole(tmp_path: Path) -> None:
    write_output(tmp_path / "out", "old")
    with pytest.raises(FileExistsError, match=r"out exists. Choose another output.dir, or set output.overwrite: true"):
        check_output_dir(tmp_path / "out", overwrite=False)
    check_output_dir(tmp_path / "out", overwrite=True)
    write_output(tmp_path / "out", "new")
    assert (tmp_path / "out" / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_needs_no_leave(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output_dir(tmp_path / "out", overwrite=False)
    write_output(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("place", ["", "thesis", ".ssh", "model", "data"])
def test_what_no_run_wrote_is_never_replaced(place: str, home: Path) -> None:
    before = everything_below(home)
    folder = home / place
    with pytest.raises(FileExistsError, match="Choose another"):
        check_output_dir(folder, True, protected_by(settings(home, folder), RunFolder(folder).logs))
    with pytest.raises(FileExistsError, match="which no run of hf_mabprune wrote"), atomic_folder(folder) as work:
        (work / "config.json").write_text("weights")
    assert everything_below(home) == before and not list(home.parent.glob(".home*"))


def test_a_file_that_was_added_to_an_output_is_not_lost(tmp_path: Path) -> None:
    write_output(tmp_path / "out")
    (tmp_path / "out" / "mabprune" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds mabprune/notes.txt, which no run of hf_mabprune wrote"):
        check_output_dir(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize("mark", ["", "[]", '{"made_by": "somebody", "files": ["thesis.tex"]}', '{"files": 3}'])
def test_a_mark_that_is_none_protects(mark: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("the only copy")
    (tmp_path / MARK).write_text(mark)
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        check_output_dir(tmp_path, overwrite=True)


def test_sources_survive_even_inside_earlier_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "out")
    write_output(tmp_path / "out2" / "size")
    places = {
        "is the model": Protected("the model", tmp_path / "out", whole=True),
        "holds the config": Protected("the config", tmp_path / "out" / "mabprune" / "report.json"),
    }
    for says, source in places.items():
        with pytest.raises(FileExistsError, match=says):
            check_output_dir(tmp_path / "out", True, [source])
    with pytest.raises(FileExistsError, match="lies inside the model"):
        check_output_dir(tmp_path / "out2" / "size", True, [Protected("the model", tmp_path / "out2", whole=True)])
    monkeypatch.chdir(tmp_path / "out" / "mabprune")
    with pytest.raises(FileExistsError, match="holds the working directory"):
        check_output_dir("..", True, protected_by(settings(tmp_path, tmp_path / "out"), tmp_path / "out.logs"))


def test_sources_are_what_the_settings_name(home: Path) -> None:
    logs = RunFolder(home / "out").logs
    found = {(source.what, source.path) for source in protected_by(settings(home, home / "out"), logs, ["run.yaml"])}
    data = {("the data", home / "data" / "train.parquet"), ("the data", home / "data")}
    assert {("the model", home / "model"), ("the config", Path("run.yaml")), *data} <= found
    assert ("the logs", Path(f"{home / 'out'}.logs")) in found
    remote = settings(home, home / "out", data_files={"train": "hf://datasets/a/b.parquet"})
    assert not [source for source in protected_by(remote, logs) if "hf:" in str(source.path)]


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "fifo"])
def test_what_is_no_plain_folder_stays(kind: str, tmp_path: Path) -> None:
    place, target = tmp_path / "out", tmp_path / "elsewhere"
    if kind == "file":
        place.write_text("mine")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        if kind == "link":
            target.mkdir()
        place.symlink_to(target)
    with pytest.raises(FileExistsError, match=r"is a (file|link|link that leads nowhere|fifo)\. Choose another"):
        check_output_dir(place, overwrite=True)


def test_only_own_leftovers_are_cleared(tmp_path: Path) -> None:
    foreign = [".x.mine.old", ".x.v2.mabprune-abcdefgh.partial", ".x.abcdefgh.partial", "x.v2", ".x.mabprune-a.old"]
    for name in foreign:
        (tmp_path / name).mkdir()
        (tmp_path / name / "work.txt").write_text("hours of it")
    unmarked = tmp_path / ".x.mabprune-abcdefgh.old"  # looks like one, and is a user's
    unmarked.mkdir()
    (unmarked / "letters.txt").write_text("mine")
    before = everything_below(tmp_path)
    unfinished = tmp_path / ".x.mabprune-zzzzzzzz.partial"
    unfinished.mkdir()
    (unfinished / MARK).write_text(json.dumps({"made_by": "hf_mabprune", "files": []}))
    (unfinished / "model.safetensors").write_text("half")
    (tmp_path / ".x.mabprune-empty123.partial").mkdir()
    clear_leftovers(tmp_path / "x")
    assert everything_below(tmp_path) == before


def test_an_old_output_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_output(tmp_path / "x", "old")
    moves: list[str] = []

    def killed(source: Path, target: Path) -> None:
        moves.append(str(target))
        if len(moves) == 2:
            raise KeyboardInterrupt
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_output(tmp_path / "x", "new")
    assert not (tmp_path / "x").exists()
    clear_leftovers(tmp_path / "x")
    assert (tmp_path / "x" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_folder_of_a_users_is_no_place_for_the_state(tmp_path: Path) -> None:
    (tmp_path / "x.state").mkdir()
    (tmp_path / "x.state" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"x.state holds notes.txt, which no run of hf_mabprune wrote"):
        refuse_other_files(tmp_path / "x.state", ["lock"])
    remove_files(tmp_path / "x.state", ["lock", "config.yaml"])
    assert (tmp_path / "x.state" / "notes.txt").read_text() == "mine"

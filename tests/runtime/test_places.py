"""Where an output may lie is found out before anything is computed, and trying it leaves everything as it was."""

import os
import stat
from pathlib import Path

import pytest

from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checks import check_around
from hf_mabprune.config import OutputConfig
from hf_mabprune.runtime import places
from hf_mabprune.runtime.files import MARK, atomic_folder, claim, clear_leftovers, rehearse, remove_files
from hf_mabprune.runtime.places import check_output_dir


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Path -> kind and permissions, and where a link leads."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, os.readlink(path) if path.is_symlink() else "")
        for path in folder.rglob("*")
    }


def finished(folder: Path) -> None:
    """An earlier output."""
    with atomic_folder(folder) as work:
        (work / "config.json").write_text("{}")


@pytest.mark.parametrize("there", ["nothing", "empty", "output"])
def test_a_rehearsal_leaves_everything_as_it_was(there: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    if there != "nothing":
        place.mkdir() if there == "empty" else finished(place)
    before = tree(tmp_path)
    rehearse(place)
    assert tree(tmp_path) == before


def test_what_a_killed_rehearsal_left_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Path, target: Path) -> None:
        Path(source).rename(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            rehearse(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]
    clear_leftovers(tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/proc/out", "/sys/out", "/dev/null/out"])
def test_a_place_that_takes_no_folder_is_refused(place: str) -> None:
    with pytest.raises(OSError, match=r"cannot be made.*Choose another output\.dir"):
        check_output_dir(place, overwrite=False)
        claim(Path(f"{place}.state"))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 240, "y" * 253])
def test_a_name_that_is_too_long_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"File name too long\)\. Choose another output\.dir"):
        check_output_dir(tmp_path / name, overwrite=False)
        claim(tmp_path / f"{name}.state")
        rehearse(tmp_path / name)


@pytest.mark.parametrize("given", ["", " ", "a\0b", "\ud800"])
def test_what_is_no_path_is_refused_with_the_settings(given: str) -> None:
    with pytest.raises(ValueError, match=r"must name a folder|cannot be used"):
        OutputConfig(dir=given)


def test_home_is_found_once_at_the_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert OutputConfig(dir="~/out").dir == str(tmp_path / "out")


@pytest.mark.parametrize("given", [".", "./", "..", "x/..", "/"])
def test_what_names_no_folder_of_its_own_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    cwd = places.Protected("the working directory", Path.cwd())
    with pytest.raises((FileExistsError, ValueError), match=r"working directory|must name a folder of its own"):
        check_output_dir(given, True, [cwd])


def test_what_is_not_there_yet_is_not_taken_either(tmp_path: Path) -> None:
    for source in (
        places.Protected("your home folder", tmp_path / "home"),
        places.Protected("the model", Path("bert")),
    ):
        with pytest.raises(FileExistsError, match=f"is {source.what}"):
            check_output_dir(source.path, True, [source])


@pytest.mark.parametrize("inside", ["", "/cache"])
def test_a_mount_point_is_not_replaced(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "my out")
    mounts = tmp_path / "mountinfo"
    place = f"{tmp_path}/my out{inside}".replace(" ", "\\040")
    mounts.write_text(f"22 1 0:21 / /proc rw - proc proc rw\n36 35 98:0 / {place} rw - ext4 /dev/sda rw\n")
    monkeypatch.setattr(places, "MOUNTS", mounts)
    with pytest.raises(FileExistsError, match=r"mount point.*name a folder inside it"):
        check_output_dir(tmp_path / "my out", overwrite=True)


def test_an_output_inside_that_of_a_run_under_way_is_refused(tmp_path: Path) -> None:
    check_around(tmp_path / "a" / "b" / "c")
    claim(RunFolder(tmp_path / "a").under_way.state)
    with pytest.raises(FileExistsError, match=r"a, which belongs to a run that is under way or interrupted"):
        check_around(tmp_path / "a" / "b" / "c")
    check_around(tmp_path / "a")
    (tmp_path / "config.yaml").touch()
    check_around(tmp_path / "new")
    finished(tmp_path / "done")
    with pytest.raises(FileExistsError, match="another run's output"):
        check_around(tmp_path / "done" / "more")


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling"])
def test_what_came_into_the_place_meanwhile_stays(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "out"
    with pytest.raises(FileExistsError, match="by now: nothing was written"), atomic_folder(place) as work:
        (work / "config.json").write_text("{}")
        if kind == "fifo":
            os.mkfifo(place)
        else:
            if kind == "link":
                (tmp_path / "elsewhere").mkdir()
            place.symlink_to(tmp_path / "elsewhere")
        before = tree(tmp_path)
    assert {name: entry for name, entry in before.items() if ".partial" not in name} == tree(tmp_path)


def test_a_file_of_an_output_that_was_changed_since_is_not_lost(tmp_path: Path) -> None:
    finished(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("fine-tuned since")
    with pytest.raises(FileExistsError, match=r"config\.json, which was changed since"):
        check_output_dir(tmp_path / "out", overwrite=True)


def test_a_users_own_empty_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "x.state").mkdir()
    for folder in (tmp_path / "x.state", tmp_path / "deep" / "er" / "x.state"):
        claim(folder)
        (folder / "lock").touch()
        remove_files(folder, ["lock", MARK])
    assert [path.name for path in tmp_path.iterdir()] == ["x.state"]
    assert not list((tmp_path / "x.state").iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_user_gives(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "out") as work:
            (work / "figures").mkdir(mode=0o700)
            for name in ("model.safetensors", "figures/pareto.png"):
                (work / name).touch(mode=0o600)
    finally:
        os.umask(before)
    for path in ((tmp_path / "out"), *(tmp_path / "out").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask

"""Checksums, against sha256sum where it is installed."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_mabprune.artifacts import checksums


def make_folder(root: Path) -> Path:
    """A folder with three files, a hidden one and a list; gives the list."""
    for name in ("a.txt", "b/c d.txt", "b/e", ".mark", ".cache/x"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    checksums.write(root, root / "b" / "SUMS")
    return root / "b" / "SUMS"


def test_sha256sum_reads_the_list(tmp_path: Path) -> None:
    place = make_folder(tmp_path)
    assert set(checksums.read(tmp_path, place)) == {"a.txt", "b/c d.txt", "b/e"}
    assert checksums.faults(tmp_path, place) == []
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", "b/SUMS"], cwd=tmp_path, check=True, capture_output=True)


def change(root: Path) -> None:
    (root / "a.txt").write_text("b.txt")


def remove(root: Path) -> None:
    (root / "b" / "e").unlink()


def add(root: Path) -> None:
    (root / "b" / "new").touch()


def link(root: Path) -> None:
    (root / "a.txt").rename(root.parent / "elsewhere")
    (root / "a.txt").symlink_to(root.parent / "elsewhere")


def link_a_folder(root: Path) -> None:
    (root / "z").symlink_to(root.parent)


def replace_by_a_pipe(root: Path) -> None:
    (root / "a.txt").unlink()
    os.mkfifo(root / "a.txt")


@pytest.mark.parametrize(
    "act, fault",
    [
        (change, "a.txt has changed"),
        (remove, "b/e is missing"),
        (add, "b/new is not in the list"),
        (link, "a.txt is no plain file"),
        (link_a_folder, "z is not in the list"),
        (replace_by_a_pipe, "a.txt is no plain file"),
    ],
)
def test_what_changed_is_named(tmp_path: Path, act: Callable[[Path], None], fault: str) -> None:
    root = tmp_path / "folder"
    place = make_folder(root)
    act(root)
    assert checksums.faults(root, place) == [fault]


def test_hidden_files_are_nobodys_business(tmp_path: Path) -> None:
    place = make_folder(tmp_path)
    (tmp_path / ".gitattributes").touch()
    (tmp_path / ".mark").write_text("other")
    assert checksums.faults(tmp_path, place) == []


@pytest.mark.parametrize(
    "text", ["nonsense", f"{'0' * 64}  ../outside\n", f"{'0' * 64}  /etc/passwd\n", f"{'0' * 63}  a.txt\n", "\0\xff"]
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    place = make_folder(tmp_path)
    place.write_text(text)
    with pytest.raises(ValueError, match="is no list of checksums: line 1"):
        checksums.faults(tmp_path, place)


def test_a_folder_without_a_list_cannot_be_checked(tmp_path: Path) -> None:
    place = make_folder(tmp_path)
    place.unlink()
    with pytest.raises(ValueError, match="has no b/SUMS, so it cannot be checked: make the run again"):
        checksums.faults(tmp_path, place)

import os
from pathlib import Path

import pytest

from hf_mabprune.data.files import refuse_shared_files, refuse_unreadable, state_of

READ_BY = {"calibration": ["train"], "test": ["test"]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "all.csv"
    path.write_text("text,label\na,0\n")
    return path


@pytest.mark.parametrize("way", ["name", "symlink", "hard_link", "pattern"])
def test_one_file_for_two_purposes_is_refused(way: str, file: Path) -> None:
    again = file.with_name("again.csv")
    if way == "symlink":
        again.symlink_to(file)
    elif way == "hard_link":
        os.link(file, again)
    elif way == "pattern":
        again.write_text("text,label\nb,1\n")
    test = {"name": [file], "pattern": [again, file]}.get(way, [again])
    files = {"train": [str(file)], "test": [str(path) for path in test]}
    with pytest.raises(
        ValueError, match=r"calibration reads 'train' and test reads 'test', both of .*; name the file"
    ):
        refuse_shared_files(files, READ_BY)


def test_files_of_their_own_and_splits_that_nobody_reads_are_fine(file: Path) -> None:
    other = file.with_name("other.csv")
    other.write_text(file.read_text())
    refuse_shared_files({"train": [str(file)], "test": [str(other)], "unused": [str(file)]}, READ_BY)
    refuse_shared_files({"train": ["https://host/a.csv"], "test": ["https://host/b.csv"]}, READ_BY)
    with pytest.raises(ValueError, match=r"both of 'https://host/a\.csv'"):
        refuse_shared_files({"train": ["https://host/a.csv"], "test": ["https://host/a.csv"]}, READ_BY)


def test_what_may_never_end_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path / "pipe"), "/dev/zero", str(tmp_path)):
        with pytest.raises(ValueError, match=f"'{name}' for split 'train' must be a plain file"):
            refuse_unreadable({"train": [name]}, never_empty=False)
    (tmp_path / "empty").touch()
    refuse_unreadable({"train": [str(tmp_path / "empty")]}, never_empty=False)
    with pytest.raises(ValueError, match="for split 'train' is empty, 0 bytes"):
        refuse_unreadable({"train": [str(tmp_path / "empty")]}, never_empty=True)


def test_a_change_in_place_is_seen_whatever_the_date_says(file: Path) -> None:
    before, dates = state_of({"train": [str(file)]}), file.stat()
    assert state_of({"train": [str(file)]}) == before
    file.write_text(file.read_text().replace("a,0", "b,1"))
    os.utime(file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert state_of({"train": [str(file)]}) != before
    assert state_of({"train": ["https://host/a.csv"]}) == ""

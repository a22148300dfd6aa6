from hf_mabprune.config import TaskConfig
from hf_mabprune.data.sample_text import FOLDER
from hf_mabprune.data.splits import load_splits, notes_on


def test_without_data_the_text_of_the_package_is_read() -> None:
    loaded = load_splits(TaskConfig())
    assert {purpose: sum(map(len, rows["text"])) > 60_000 for purpose, rows in loaded.items()} == dict.fromkeys(
        ("calibration", "validation", "test"), True
    )
    assert "no data were named" in notes_on(TaskConfig())[0]


def test_the_texts_of_all_rows_are_the_file_and_so_are_the_sentences() -> None:
    rows = load_splits(TaskConfig())["test"]
    content = (FOLDER / "test.txt").read_text(encoding="utf-8")
    assert "".join(rows["text"]) == content
    assert " ".join(rows["sentence"]) == content.replace("\n", " ").strip()
    assert all(rows["sentence"]) and len(rows) > 3 * content.count("\n")


def test_no_paragraph_is_in_two_splits_or_has_marks_of_tokenisation() -> None:
    paragraphs = [(FOLDER / f"{split}.txt").read_text(encoding="utf-8").splitlines() for split in ("train", "test")]
    assert not set(paragraphs[0]) & set(paragraphs[1])
    assert not any(mark in text for texts in paragraphs for text in texts for mark in ("<unk>", "@-@", " , ", " . "))


def test_its_licence_and_source_lie_beside_it() -> None:
    notice = (FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    assert "creativecommons.org/licenses/by-sa/3.0" in notice and "WikiText-2" in notice
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 500_000

import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from hf_mabprune.config import DatasetConfig, SplitsConfig, TaskConfig
from hf_mabprune.data import loaders
from hf_mabprune.data.columns import full_column
from hf_mabprune.data.splits import draw, load_splits


def test_certain_overlaps_are_refused_before_the_size_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*args: Any, **options: Any) -> None:
        raise RuntimeError("data were touched")

    monkeypatch.setattr(loaders, "load_dataset_builder", fetch)
    chosen = SplitsConfig(calibration="train[1000:]", validation="train[:2000]", test="test")
    with pytest.raises(ValueError, match="share rows of 'train'"):
        load_splits(TaskConfig(dataset=DatasetConfig(path="some/data"), splits=chosen))
    with pytest.raises(ValueError, match="data were touched"):
        load_splits(TaskConfig(dataset=DatasetConfig(path="some/data")))


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two JSON-lines files, of 10 and 4 rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = {}
    for split, rows in (("train", 10), ("test", 4)):
        path = tmp_path / f"{split}.json"
        path.write_text("\n".join(json.dumps({"text": f"{split} {row}", "label": row % 2}) for row in range(rows)))
        found[split] = str(path)
    return found


def config(files: dict[str, str] | None, loader: str = "json", **chosen: str) -> TaskConfig:
    wanted = {"calibration": "train[6:]", "validation": "train[:6]", "test": "test"} | chosen
    return TaskConfig(dataset=DatasetConfig(path=loader, data_files=files), splits=SplitsConfig(**wanted))


def test_local_files_are_sliced(files: dict[str, str]) -> None:
    loaded = load_splits(config(files))
    assert {purpose: dataset["text"][:] for purpose, dataset in loaded.items()} == {
        "calibration": [f"train {row}" for row in range(6, 10)],
        "validation": [f"train {row}" for row in range(6)],
        "test": [f"test {row}" for row in range(4)],
    }


def test_an_overlap_that_depends_on_the_size_is_found_in_the_data(files: dict[str, str]) -> None:
    assert len(load_splits(config(files, calibration="train[6:]", validation="train[:60%]"))["validation"]) == 6
    with pytest.raises(ValueError, match=r"share 1 rows of 'train'"):
        load_splits(config(files, calibration="train[6:]", validation="train[:70%]"))


def test_several_files_are_one_split(files: dict[str, str]) -> None:
    several: Any = {"train": [files["train"], files["test"]]}
    wanted = {"calibration": "train[4:]", "validation": "train[:2]", "test": "train[2:4]"}
    loaded = load_splits(config(several, **wanted))
    assert loaded["calibration"]["text"][:] == [f"train {row}" for row in range(4, 10)] + [
        f"test {row}" for row in range(4)
    ]


def test_rows_may_be_shuffled_before_they_are_sliced(tmp_path: Path, files: dict[str, str]) -> None:
    """A file that is sorted by label: without it, calibration has one label and validation the other."""
    path = tmp_path / "sorted.json"
    path.write_text("\n".join(json.dumps({"text": f"{row}", "label": row // 50}) for row in range(100)))
    chosen = {"calibration": "train[50:]", "validation": "train[:50%]", "test": "test"}
    task = TaskConfig(
        dataset=DatasetConfig(path="json", data_files=files | {"train": str(path)}),
        splits=SplitsConfig(**chosen, shuffle=True),
    )
    loaded, again, other = (load_splits(task, seed) for seed in (0, 0, 1))
    texts = [text for purpose in ("calibration", "validation") for text in loaded[purpose]["text"]]
    assert sorted(texts, key=int) == [f"{row}" for row in range(100)]
    assert set(loaded["calibration"]["label"]) == set(loaded["validation"]["label"]) == {0, 1}
    assert loaded["calibration"]["text"][:] == again["calibration"]["text"][:] != other["calibration"]["text"][:]


def test_data_for_certification_share_no_rows_with_others(files: dict[str, str]) -> None:
    loaded = load_splits(config(files, test="test[:2]", certification="test[2:]"))
    assert loaded["certification"]["text"][:] == ["test 2", "test 3"]
    with pytest.raises(ValueError, match=r"test 'test' and certification 'test\[2:\]' share rows"):
        load_splits(config(files, test="test", certification="test[2:]"))


def test_a_role_may_be_a_field_of_a_column(tmp_path: Path, files: dict[str, str]) -> None:
    for split in files:
        Path(files[split]).write_text("\n".join(json.dumps({"answers": {"text": [f"{n}"]}}) for n in range(10)))
    task = config(files).model_copy(update={"columns": {"text": "answers.text.0"}})
    assert load_splits(task)["validation"]["answers.text.0"][:] == list("012345")


def test_a_missing_file_is_named(files: dict[str, str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.json' for split 'train'"):
        load_splits(config(files | {"train": "nowhere.json"}))
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\*\.json' for split 'train'"):
        load_splits(config(files | {"train": "nowhere*.json"}))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"dataset.path: no folder '\./nowhere'"):
        load_splits(TaskConfig(dataset=DatasetConfig(path="./nowhere")))


def test_a_folder_of_files_is_read(files: dict[str, str]) -> None:
    assert len(load_splits(config(None, str(Path(files["train"]).parent)))["calibration"]) == 4


def test_a_missing_split_names_those_there_are(files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"splits.validation: no split 'validation' .* Its splits: train, test"):
        load_splits(config(files, validation="validation"))


def test_files_that_cannot_be_read_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{broken")
    with pytest.raises(ValueError, match="data of 'json' cannot be read"):
        load_splits(config(files | {"train": str(tmp_path / "broken.json")}))
    (tmp_path / "broken.parquet").write_text("broken")
    with pytest.raises(ValueError, match="data of 'parquet' cannot be read"):
        load_splits(config({"train": str(tmp_path / "broken.parquet"), "test": files["test"]}, "parquet"))


def test_a_file_without_rows_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.csv"
    empty.write_text("text,label\n")
    full = tmp_path / "full.csv"
    full.write_text("text,label\na,0\nb,1\n")
    other = tmp_path / "other.csv"
    other.write_text("text,label\nc,0\nd,1\n")
    chosen = {"calibration": "train[1:]", "validation": "train[:1]"}
    assert len(load_splits(config({"train": str(full), "test": str(other)}, "csv", **chosen))["test"]) == 2
    with pytest.raises(ValueError, match=r"splits.test: 'test' must not be empty, .*'test' has 0 rows"):
        load_splits(config({"train": str(full), "test": str(empty)}, "csv", **chosen))


def test_a_loader_without_files_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset\.path 'parquet' needs data_files"):
        load_splits(config(None, "parquet"))


def test_a_hub_that_cannot_be_reached_says_what_else_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub")

    monkeypatch.setattr(loaders, "load_dataset_builder", unreachable)
    with pytest.raises(ConnectionError, match=r"'nyu-mll/glue' cannot be fetched from the Hub.*path one of parquet"):
        load_splits(TaskConfig(dataset=DatasetConfig(path="nyu-mll/glue", name="sst2")))


def test_a_draw_takes_each_row_at_most_once() -> None:
    dataset = Dataset.from_dict({"row": list(range(50))})
    drawn = draw(dataset, 20, seed=3)["row"][:]
    assert len(set(drawn)) == 20
    assert drawn == draw(dataset, 20, seed=3)["row"][:]
    assert drawn != draw(dataset, 20, seed=4)["row"][:]
    assert sorted(draw(dataset, 80, seed=3)["row"][:]) == list(range(50))
    assert draw(dataset, None, seed=3)["row"][:] == list(range(50))


def test_images_come_through_as_they_are_stored(tmp_path: Path) -> None:
    """Parquet files carry the Image feature, folders have their labels from their names."""
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": [PIL.Image.fromarray(np.roll(pixels, row)) for row in range(4)], "label": [0, 1, 0, 1]}
    files = {}
    for split in ("train", "validation", "test"):
        Dataset.from_dict(rows, features).to_parquet(files.setdefault(split, str(tmp_path / f"{split}.parquet")))
        for row, label in enumerate(rows["label"]):
            folder = tmp_path / split / features["label"].names[label]
            folder.mkdir(parents=True, exist_ok=True)
            rows["image"][row].save(folder / f"{row}.png")
    folders = {split: str(tmp_path / split / "**") for split in files}
    for path, data_files in (("parquet", files), ("imagefolder", folders)):
        splits = load_splits(TaskConfig(dataset=DatasetConfig(path=path, data_files=data_files)))
        assert splits["calibration"].features == features
        for row in splits["test"]:
            number = rows["image"].index(row["image"].convert("RGB"))
            assert rows["label"][number] == row["label"]
    with pytest.raises(ValueError, match=r"path 'imagefolder' needs data_files, e\.g\. \{train: train/\*\*\}"):
        load_splits(TaskConfig(dataset=DatasetConfig(path="imagefolder")))
    with pytest.raises(FileNotFoundError, match=r"no file '.*nowhere"):
        nowhere = {"train": str(tmp_path / "nowhere" / "**")}
        load_splits(TaskConfig(dataset=DatasetConfig(path="imagefolder", data_files=nowhere)))


def written(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


ROWS = "a,0\nb,1\nc,0\n"
HALVES = SplitsConfig(calibration="train[1:]", validation="train[:1]", test="test")


def read(loader: str, train: str, test: str, **options: Any) -> dict[str, Dataset]:
    named = DatasetConfig(path=loader, data_files={"train": train, "test": test}, options=options)
    return load_splits(TaskConfig(dataset=named, splits=HALVES))


def test_options_reach_the_loader(tmp_path: Path, files: dict[str, str]) -> None:
    train = written(tmp_path / "a.csv", "text;label\nNA;0\nnull;1\n")
    test = written(tmp_path / "b.csv", "text;label\ncafé;1\n".encode("latin-1"))
    loaded = read("csv", train, test, sep=";", keep_default_na=False, encoding="latin-1")
    assert loaded["validation"]["text"][:] == ["NA"]
    assert loaded["calibration"][:] == {"text": ["null"], "label": [1]}
    assert loaded["test"]["text"][:] == ["café"]
    named = written(tmp_path / "c.csv", ROWS), written(tmp_path / "d.csv", ROWS)
    assert read("csv", *named, names=["word", "class"])["test"]["word"][:] == ["a", "b", "c"]
    inner = [written(tmp_path / f"{name}.json", json.dumps({"rows": [{"text": name}] * 2})) for name in "ab"]
    assert read("json", *inner, field="rows")["test"]["text"][:] == ["b", "b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"seperator": ";"},
            r"task\.dataset\.options: the loader 'json' has no option 'seperator'\. Its options: enc",
        ),
        ({"feild": "rows"}, r"has no option 'feild'\. Did you mean 'field'\?"),
        ({"field": 5}, r"task\.dataset\.options\.field must be Optional\[str\], got 5"),
        ({"chunksize": "many"}, r"task\.dataset\.options\.chunksize must be int, got 'many'"),
        ({"chunksize": True}, r"task\.dataset\.options\.chunksize must be int, got True"),
        ({"features": {"text": "string"}}, "has no option 'features'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=message):
        read("json", files["train"], files["test"], **options)


def test_options_that_are_code_are_none(tmp_path: Path, files: dict[str, str]) -> None:
    for name in ("converters", "data_files", "description"):
        with pytest.raises(ValueError, match=f"the loader 'csv' has no option '{name}'"):
            read("csv", files["train"], files["test"], **{name: {}})


FAULTS: dict[str, tuple[str, str | bytes, str]] = {
    "separator": ("csv", "text;label\na;0\n", r"must have the same columns.*task\.dataset\.options: \{sep: ';'"),
    "no_names": ("csv", ROWS, r"must have the same columns.*names: \[text, label\]"),
    "ragged": (
        "csv",
        "text,label\na,0\nb,x,1\n",
        "Expected 2 fields in line 3, saw 3; look at .*bad, and name its sep",
    ),
    "shifted": (
        "csv",
        "text,label\n1,a,0\n2,b,1\n",
        "Length of header or names does not match length of data.*look at .*bad, and name",
    ),
    "open_quote": ("csv", 'text,label\n"a,0\nb,1\n', "EOF inside string starting at row 1; look at .*bad"),
    "latin_1": ("csv", "text,label\ncafé,0\n".encode("latin-1"), r"no text in UTF-8 .*bad, .*\{encoding: latin-1\}"),
    "huge_number": ("csv", f"text,label\na,{2**70}\n", "OverflowError: .*look at .*bad"),
    "no_bytes": ("csv", "", "'.*bad' for split 'train' is empty, 0 bytes"),
    "no_lines": ("csv", "\n\n", "No columns to parse from file; look at .*bad"),
    "cut_json": ("json", '{"text": "a", "la', "JSON parse error.*look at .*bad"),
    "surrogate": ("json", '{"text": "\\ud800", "label": 0}', "surrogate pair in string is invalid.*look at .*bad"),
    "json_of_numbers": ("json", "5\n", "JSON parse error.*look at .*bad"),
    "two_columns_of_a_name": ("json", '{"text": "a", "text": "b"}', "was specified twice.*look at .*bad"),
    "deep": ("json", '{"x": ' + "[" * 2000 + "]" * 2000 + "}", "nested too deeply"),
    "cut_parquet": ("parquet", b"PAR1" + bytes(40), "magic bytes not found in footer.*look at .*bad"),
    "no_arrow": ("arrow", b"no arrow file at all", "look at .*bad"),
    "no_text": ("text", b"\xff\xfe\x00", "this is no text in UTF-8 .*look at .*bad"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_with_a_fault_is_named_in_one_line(
    name: str, tmp_path: Path, files: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    loader, content, message = FAULTS[name]
    good = tmp_path / "good"
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    if loader == "parquet":
        rows.to_parquet(good)
    elif loader == "json":
        rows.to_json(good)
    else:
        written(good, f"text,label\n{ROWS}")
    with pytest.raises(ValueError, match=message) as raised:
        read(loader, written(tmp_path / "bad", content), str(good))
    assert "\n" not in str(raised.value)
    assert "Failed to" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x00garbage", b"text,label\na,0\n"])
def test_a_broken_archive_is_named_by_its_own_name(content: bytes, tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"data of 'csv' cannot be read: .*look at .*bad\.csv\.gz"):
        read("csv", written(tmp_path / "bad.csv.gz", content), written(tmp_path / "b.csv", f"text,label\n{ROWS}"))


def test_missing_values_of_csv_say_how_to_read_them_as_texts(tmp_path: Path, files: dict[str, str]) -> None:
    loaded = read(
        "csv",
        written(tmp_path / "a.csv", "text,label\na,0\nNA,1\n"),
        written(tmp_path / "b.csv", f"text,label\n{ROWS}"),
    )
    with pytest.raises(ValueError, match=r"column 'text': no value in row 0; .*options: \{keep_default_na: false\}"):
        full_column(loaded["calibration"], "text", "calibration")


def test_the_same_file_for_two_splits_is_refused_before_it_is_read(tmp_path: Path, files: dict[str, str]) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(files["train"])
    for test in (files["train"], str(link), str(tmp_path / "*.json")):
        with pytest.raises(ValueError, match="calibration reads 'train' and test reads 'test', both of"):
            load_splits(config(files | {"test": test}))
    assert not (tmp_path / "cache" / "json").exists()


def test_a_file_that_changed_in_place_is_read_anew(files: dict[str, str]) -> None:
    train = Path(files["train"])
    dates, before = train.stat(), load_splits(config(files))["calibration"]["text"][:]
    train.write_text(train.read_text().replace("train", "other"))
    os.utime(train, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert load_splits(config(files))["calibration"]["text"][:] == [text.replace("train", "other") for text in before]


def test_scripts_and_pickles_are_never_run(tmp_path: Path, files: dict[str, str]) -> None:
    mark = tmp_path / "ran"
    script = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (tmp_path / "scripted").mkdir()
    written(tmp_path / "scripted" / "scripted.py", script)
    for path in (written(tmp_path / "script.py", script), str(tmp_path / "scripted"), "pandas"):
        for data_files in (None, files):
            with pytest.raises(
                ValueError, match=r"scripts are not run|scripts are no longer supported|pickles and may"
            ):
                load_splits(TaskConfig(dataset=DatasetConfig(path=path, data_files=data_files)))
    assert not mark.exists()


def test_a_place_that_cannot_hold_the_cache_is_said(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", f"{files['train']}/cache")
    with pytest.raises(
        ValueError, match=r"Not a directory; data are kept in the cache of `datasets`.*HF_DATASETS_CACHE"
    ):
        load_splits(config(files))


def test_credentials_in_addresses_are_not_shown(files: dict[str, str]) -> None:
    address = "foo://user:secret@host/train.json?token=hidden"
    with pytest.raises(ValueError, match=r"look at foo://.*host/train\.json") as raised:
        load_splits(config(files | {"train": address}))
    assert "secret" not in str(raised.value) and "hidden" not in str(raised.value)

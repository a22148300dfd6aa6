"""Kind 4: checks that could not fail: numbers that are none, splits that are one, models that know nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file, save_file

from tests.cli.world import SPLITS
from tests.hostile.case import Case, Done, one, prune
from tests.hostile.mutations import Random
from tests.hostile.prepared import edit_yaml
from tests.hostile.programs import program

NEEDS = ("models/bert", "data", "run.yaml", "run")


def edit_weights(path: Path, rng: Random, value: float, count: int | None = None, only: str = "") -> None:
    """Sets numbers of a tensor to a value; all of them where no count is given."""
    tensors = load_file(path)
    name = rng.choice([name for name in sorted(tensors) if only in name])
    flat = tensors[name].flatten()
    for place in range(len(flat)) if count is None else rng.sample(range(len(flat)), min(count, len(flat))):
        flat[place] = value
    tensors[name] = flat.reshape(tensors[name].shape)
    save_file(tensors, path, {"format": "pt"})


def beyond_half_precision(rng: Random) -> Case:
    """Weights that the precision they are saved in cannot hold."""
    dtype, seed = "float16", rng.randrange(2**31)
    value, count = rng.choice([7e4, -1e5, 1e30, 66000.0]), rng.choice([1, 1, 5, None])
    only = rng.choice(["", "output.dense", "classifier", "embeddings", "LayerNorm", "bias", "value"])
    return one(
        f"{value} in {dtype}",
        prune("--model.save_dtype", dtype),
        "refused",
        early=True,
        harm=lambda folder: edit_weights(folder / "models/bert/model.safetensors", Random(seed), value, count, only),
    )


def no_numbers(rng: Random) -> Case:
    """Weights that are no numbers."""
    value, seed = rng.choice([float("nan"), float("inf"), -float("inf")]), rng.randrange(2**31)
    only, count = rng.choice(["", "output.dense", "classifier", "embeddings", "LayerNorm"]), rng.choice([1, 3, None])
    command = rng.choice(
        [
            prune(),
            prune("--search.criterion", "magnitude", "--search.rounds", "null"),
            prune("--search.criterion", "kfac_obs", "--search.rounds", "null"),
            prune("--compensation", "null"),
        ]
    )
    # A number that no example reaches, as in the row of a word that does not occur, does no harm.
    return one(
        f"{value} in {only or 'any'} weights",
        command,
        "any" if only in ("", "embeddings") else "refused",
        harm=lambda folder: edit_weights(folder / "models/bert/model.safetensors", Random(seed), value, count, only),
    )


def no_numbers_in_a_checkpoint(rng: Random) -> Case:
    """A finished checkpoint whose weights are no numbers is evaluated, cut from or published."""
    value, seed = rng.choice([float("nan"), float("inf"), 1e38]), rng.randrange(2**31)
    command = rng.choice([("evaluate", "run", "--json"), ("evaluate", "run"), ("push", "run", "me/x")])
    only = rng.choice(["output.dense", "classifier", "LayerNorm"])
    return one(
        f"{value} in a checkpoint ({command[0]})",
        command,
        "any" if value == 1e38 else "refused",
        needs=NEEDS,
        harm=lambda folder: edit_weights(folder / "run/model.safetensors", Random(seed), value, None, only),
    )


def one_file_thrice(rng: Random) -> Case:
    """One file, or copies of it, serve as several splits."""
    how, which = rng.randrange(6), rng.sample(SPLITS, 2)

    def harm(folder: Path) -> None:
        one_file, other = (folder / "data" / f"{split}.parquet" for split in which)
        files = {split: f"data/{split}.parquet" for split in SPLITS}
        if how == 0:
            files = dict.fromkeys(SPLITS, "data/train.parquet")
        elif how == 1:
            shutil.copy(one_file, other)
        elif how == 2:
            other.unlink()
            other.symlink_to(one_file.name)
        elif how == 3:
            other.unlink()
            other.hardlink_to(one_file)
        elif how == 4:
            rows = Dataset.from_parquet(str(one_file), cache_dir=str(folder.parent / "tmp2"))
            rows.select(range(len(rows) - 1, -1, -1)).to_parquet(str(other))
        else:
            files[which[0]] = f"./data/../data/{which[1]}.parquet"
        edit_yaml(folder / "run.yaml", {"task.dataset.data_files": files})

    return one(f"one file for {' and '.join(which)}, {how}", prune(), "refused", harm=harm, early=True)


def mostly_shared(rng: Random) -> Case:
    """Two splits share most of their rows, written into files of their own."""
    one_split, other = rng.sample(SPLITS, 2)
    share = rng.choice([1.0, 0.9])

    def harm(folder: Path) -> None:
        cache = str(folder.parent / "tmp2")
        rows = Dataset.from_parquet(str(folder / "data" / f"{one_split}.parquet"), cache_dir=cache)
        more = Dataset.from_parquet(str(folder / "data" / f"{other}.parquet"), cache_dir=cache)
        count = int(len(rows) * share)
        mixed = concatenate_datasets([rows.select(range(count)), more.select(range(len(more) - count))])
        mixed.shuffle(seed=0).to_parquet(str(folder / "data" / f"{other}.parquet"))

    return one(f"{share:.0%} of {other} is {one_split}", prune(), "warned", harm=harm)


def sorted_rows(rng: Random) -> Case:
    """A sorted file is sliced: a split lacks classes."""
    splits = rng.choice(
        [
            {"calibration": "train[:40]", "validation": "train[40:80]", "test": "train[80:]"},
            {"calibration": "train[20%:]", "validation": "train[:10%]", "test": "train[10%:20%]"},
            {"calibration": "train[60:]", "validation": "train[:30]", "test": "train[30:60]"},
        ]
    )
    down = rng.random() < 0.5

    def harm(folder: Path) -> None:
        cache = str(folder.parent / "tmp2")
        rows = concatenate_datasets(
            [Dataset.from_parquet(str(folder / "data" / f"{s}.parquet"), cache_dir=cache) for s in SPLITS]
        )
        rows.sort("label", reverse=down).to_parquet(str(folder / "data" / "sorted.parquet"))
        edit_yaml(
            folder / "run.yaml", {"task.dataset.data_files": {"train": "data/sorted.parquet"}, "task.splits": splits}
        )

    return one("a sorted file, sliced", prune(), "warned", harm=harm, reference="")


def knows_nothing(rng: Random) -> Case:
    """A model that is worse than chance: its labels are swapped."""
    name, expects = rng.choice([("swapped_", "warned"), ("swapped_", "warned"), ("", "any")])
    which = rng.choice([SPLITS, SPLITS, ("test", "validation")])

    def harm(folder: Path) -> None:
        files = {split: f"data/{name if split in which else ''}{split}.parquet" for split in SPLITS}
        edit_yaml(folder / "run.yaml", {"task.dataset.data_files": files})

    return one(
        f"labels {name or 'as they are'} in {', '.join(which)}", prune(), expects, harm=harm, needs=NEEDS, reference=""
    )


def one_class(rng: Random) -> Case:
    """A split whose labels, or texts, are all the same."""
    split, column = rng.choice(SPLITS), rng.choice(["label", "label", "sentence"])

    def harm(folder: Path) -> None:
        path = folder / "data" / f"{split}.parquet"
        rows = Dataset.from_parquet(str(path), cache_dir=str(folder.parent / "tmp2")).to_dict()
        rows[column] = [rows[column][0]] * len(rows[column])
        Dataset.from_dict(rows).to_parquet(str(path))

    return one(f"one {column} in {split}", prune(), "warned" if column == "label" else "any", harm=harm, reference="")


def the_same_object(rng: Random) -> Case:
    """At the Python door, one data set serves several purposes."""
    lines = rng.choice(
        [
            "validation = calibration",
            "test = validation",
            "validation = test = calibration",
            "test = calibration.select(range(len(calibration)))",
            "test = validation.shuffle(seed=1)",
            "test = Dataset.from_dict(calibration.to_dict())",
            "test = calibration.select(range(40))",
            "validation = calibration.filter(lambda row: True)",
            "import copy; test = copy.deepcopy(calibration)",
            "test = calibration.add_column('more', [0] * len(calibration))",
            "test = calibration.with_format('torch')",
            "test = calibration.flatten_indices()",
        ]
    )
    return one(f"one data set for several purposes: {lines[:50]}", (), "refused", program=program(after_data=lines))


def cut_to_nothing(rng: Random) -> Case:
    """A target that leaves almost nothing of a layer."""
    target = rng.choice(
        ['{"neurons": 0.83}', '{"parameters": 0.55}', '{"macs": 0.7}', '{"neurons": 0.8, "heads": 0.75}']
    )

    def harm(folder: Path) -> None:
        edit_yaml(folder / "run.yaml", {"prune.target": json.loads(target)})

    return one(f"target {target}", prune(), "any", harm=harm, needs=NEEDS, checks=(reload_is_a_number,))


def reload_is_a_number(done: Done) -> str | None:
    """The comparison with the file read back is no NaN."""
    return "the reload difference is nan" if "reload difference nan" in done.stdout else None


THEMES = (
    beyond_half_precision,
    no_numbers,
    no_numbers_in_a_checkpoint,
    one_file_thrice,
    mostly_shared,
    sorted_rows,
    knows_nothing,
    one_class,
    the_same_object,
    cut_to_nothing,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

"""Kind 5: saved files that were damaged or edited: search, table of arms, report, config, weights."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, Expected, Step, one, prune
from tests.hostile.mutations import (
    PLACES,
    Random,
    edit_json,
    edit_safetensors_header,
    edit_table,
    edit_yaml,
    harm_bytes,
    reseal,
)

NEEDS = ("models/bert", "data", "run.yaml", "run")
WAITING = ("models/bert", "data", "run.yaml", "out.state")
FILES = (
    "mabprune/arms.parquet",
    "mabprune/report.json",
    "mabprune/config.yaml",
    "mabprune/search_state.safetensors",
    ".mabprune-output.json",
    "config.json",
    "model.safetensors",
)
EDITS: dict[str, Callable[[Path, Random], str]] = {
    ".parquet": edit_table,
    ".json": edit_json,
    ".yaml": edit_yaml,
    ".safetensors": edit_safetensors_header,
}
CUT = ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out")


def harm_file(path: Path, rng: Random) -> str:
    """Damages a file, or edits an entry of it."""
    return harm_bytes(path, rng) if rng.random() < 0.45 else EDITS[path.suffix](path, rng)


def harmed(name: str, file: str, seed: int, command: tuple[str, ...], expects: Expected, **options: Any) -> Case:
    """A command reads a harmed file, which may be in the list of checksums as it is."""
    sealed = seed % 3 or not file.startswith("run/")

    def harm(folder: Path) -> None:
        harm_file(folder / file, Random(seed))
        if not sealed:
            reseal(folder / "run", Random(seed))

    name, expects = (name, expects) if sealed else (f"{name}, resealed", "any")
    return one(
        f"{name}: {file} ({command[0]})",
        command,
        expects,
        harm=harm,
        **options,
    )


def state(rng: Random) -> Case:
    """The saved search of an interrupted run."""
    return harmed(
        "state harmed",
        "out.state/search_state.safetensors",
        rng.randrange(2**31),
        prune("--resume"),
        "equal",
        needs=WAITING,
        reference="resumed",
    )


def state_config(rng: Random) -> Case:
    """The settings of an interrupted run, which the command that goes on names."""
    config = rng.choice(["out.state/config.yaml", "run.yaml"])
    return harmed(
        "settings harmed",
        "out.state/config.yaml",
        rng.randrange(2**31),
        prune("--resume", config=config),
        "equal" if config == "run.yaml" else "warned",
        needs=WAITING,
        reference="resumed",
    )


def arms(rng: Random) -> Case:
    """The table of arms, from which another size is cut."""
    return harmed(
        "arms harmed", "run/mabprune/arms.parquet", rng.randrange(2**31), CUT, "equal", needs=NEEDS, reference="cut"
    )


def report(rng: Random) -> Case:
    """The report, from which another size is cut."""
    return harmed(
        "report harmed", "run/mabprune/report.json", rng.randrange(2**31), CUT, "equal", needs=NEEDS, reference="cut"
    )


def config(rng: Random) -> Case:
    """The settings of a finished run, which say what model and data are cut and measured."""
    return harmed(
        "config harmed", "run/mabprune/config.yaml", rng.randrange(2**31), CUT, "warned", needs=NEEDS, reference="cut"
    )


def special(rng: Random) -> Case:
    """A saved file is not there, or is no file."""
    place, seed = rng.choice(PLACES), rng.randrange(2**31)
    file = rng.choice([f"run/{name}" for name in FILES[:4]])
    return one(
        f"{file} {place.__name__}",
        CUT,
        "warned",
        needs=NEEDS,
        reference="cut",
        harm=lambda folder: place(folder / file, Random(seed)),
    )


def finished(rng: Random) -> Case:
    """`--resume` where the output is there, and is not whole."""
    file, seed = rng.choice(FILES), rng.randrange(2**31)
    how = rng.choice([harm_file, harm_file, *PLACES])

    def harm(folder: Path) -> None:
        (folder / "run").rename(folder / "out")
        how(folder / "out" / file, Random(seed))

    overwrite = ("--output.overwrite", "true") if rng.random() < 0.4 else ()
    # The report and the card say nothing of selection and weights.
    return one(f"--resume, and {file} {how.__name__}", prune("--resume", *overwrite), "equal", harm=harm, needs=NEEDS)


def evaluated(rng: Random) -> Case:
    """`evaluate` of a run whose files are harmed."""
    file = rng.choice(["mabprune/report.json", "mabprune/config.yaml", "mabprune/arms.parquet"])
    return harmed(
        "evaluated",
        f"run/{file}",
        rng.randrange(2**31),
        ("evaluate", "run", "--json"),
        "warned" if "config" in file else "any",
        needs=NEEDS,
        reference="evaluate run",
    )


def mixed(rng: Random) -> Case:
    """Files of another run lie among those of this one."""
    file = rng.choice(FILES[:4])

    def harm(folder: Path) -> None:
        shutil.copy(folder / "uniform" / file, folder / "run" / file)

    return one(f"{file} of another run", CUT, "equal", harm=harm, needs=(*NEEDS, "uniform"), reference="cut")


def launches_differ(rng: Random) -> Case:
    """The processes of one launch are given different settings."""
    words = rng.choice(
        [
            ("--seed", "1"),
            ("--search.rounds", "3"),
            ("--search.pulls_per_arm", "3"),
            ("--prune.block_size", "4"),
            ("--task.batch_size", "4"),
            ("--model.name", "models/untaught"),
            ("--search.policy.name", "ucb1"),
            ("--compensation", "null"),
            ("--task.calibration_examples", "20"),
            ("--output.dir", "other"),
            ("--prune.target.neurons", "0.25"),
            ("--config", "nope.yaml"),
            ("--resume",),
            ("--task.dataset.data_files.train", "data/seven.parquet"),
        ]
    )
    step = Step(prune(), expects="refused", others=((*prune(), *words),))
    return Case(f"the second process has {' '.join(words)}", (step,), needs=("models", "data", "run.yaml"))


def interrupted_elsewhere(rng: Random) -> Case:
    """The state was saved with another model, or other data."""
    how, seed = rng.randrange(3), rng.randrange(2**31)

    def harm(folder: Path) -> None:
        if how == 0:
            shutil.copy(folder / "models/untaught/model.safetensors", folder / "models/bert/model.safetensors")
        elif how == 1:
            shutil.copy(folder / "data/test.parquet", folder / "data/spare.parquet")
            shutil.copy(folder / "data/swapped_train.parquet", folder / "data/train.parquet")
        else:
            harm_bytes(folder / "models/bert/model.safetensors", Random(seed))

    return one(
        "resumed with another model or other data",
        prune("--resume"),
        "equal" if how == 2 else "refused",
        harm=harm,
        needs=("models/bert", "models/untaught", "data", "run.yaml", "out.state"),
        reference="resumed",
    )


def verified(rng: Random) -> Case:
    """`verify` notices whatever was done to a file."""
    file, seed = rng.choice(FILES[:3] + FILES[5:]), rng.randrange(2**31)
    base = ("--base", "models/bert") if rng.random() < 0.4 else ()

    def harm(folder: Path) -> None:
        before = (folder / "run" / file).read_bytes()
        draw = Random(seed)
        while (folder / "run" / file).read_bytes() == before:
            harm_file(folder / "run" / file, draw)

    command = ("verify", "run", *base)
    return one(f"{file} harmed ({' '.join(command)})", command, "refused", harm=harm, needs=NEEDS, own=())


def verified_resealed(rng: Random) -> Case:
    """`verify` of a folder whose checksums were made anew after it was harmed; with the base, more is found out."""
    file, seed = rng.choice(FILES), rng.randrange(2**31)
    base = ("--base", "models/bert") if rng.random() < 0.6 else ()

    def harm(folder: Path) -> None:
        harm_file(folder / "run" / file, Random(seed))
        reseal(folder / "run", Random(seed))

    command = ("verify", "run", *base, *(("--json",) if rng.random() < 0.3 else ()))
    return one(f"{file} harmed, resealed ({' '.join(command)})", command, "any", harm=harm, needs=NEEDS, own=())


THEMES = (
    verified,
    verified_resealed,
    state,
    arms,
    state_config,
    report,
    config,
    special,
    finished,
    evaluated,
    mixed,
    state,
    arms,
    finished,
    launches_differ,
    interrupted_elsewhere,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

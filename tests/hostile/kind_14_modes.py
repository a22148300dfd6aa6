"""Kind 14: files and folders get the modes that the umask says, all of them."""

import stat
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case, Check, Done, Step, prune
from tests.hostile.mutations import Random

UMASKS = (0o022, 0o002, 0o000, 0o077, 0o027, 0o007, 0o066, 0o026, 0o012, 0o177 & 0o077, 0o037, 0o023)


def modes_follow(umask: int) -> Check:
    """Gives a check of everything that a command has made."""

    def check(done: Done) -> str | None:
        if done.code:
            return None
        for made in ("out", "out.logs"):
            root = done.folder / made
            for path in [root, *sorted(root.rglob("*"))] if root.exists() else []:
                mode = stat.S_IMODE(path.lstat().st_mode)
                asked = (0o777 if path.is_dir() else 0o666) & ~umask
                if mode != asked:
                    return f"{path.relative_to(done.folder)} has mode {mode:o}, umask {umask:03o} asks for {asked:o}"
        return None

    return check


def whole(rng: Random) -> Case:
    """A run or a cut, under some umask."""
    umask = rng.choice(UMASKS)
    config, reference = rng.choice(
        [
            ("run.yaml", "run"),
            ("uniform.yaml", "uniform"),
            ("sizes.yaml", "sizes"),
            ("magnitude.yaml", "magnitude"),
            ("cut", "cut"),
            ("llama.yaml", "llama"),
        ]
    )
    command = (
        ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out")
        if config == "cut"
        else prune(config=config)
    )
    more = {
        "log": ("--output.log_with", '["tensorboard"]'),
        "half": ("--model.save_dtype", rng.choice(["bfloat16", "float16"])),
        "train": ("--recovery", '{"epochs": 0.1}'),
        "plain": (),
        "same": (),
    }
    way = rng.choice(sorted(more))
    plain = (way in ("plain", "same", "log") and config != "cut") or config == "cut"
    words = () if config == "cut" else more[way]
    step = Step(
        (*command, *words), expects="passes" if plain else "any", reference=reference, checks=(modes_follow(umask),)
    )
    return Case(
        f"umask {umask:03o}, {config} {way}",
        (step,),
        umask=umask,
        figures=rng.random() < 0.3,
        needs=(
            "models/bert",
            "models/llama",
            "data",
            "run.yaml",
            "uniform.yaml",
            "sizes.yaml",
            "magnitude.yaml",
            "llama.yaml",
            "run",
        ),
    )


def replaced(rng: Random) -> Case:
    """An earlier output of other modes is replaced, or an interrupted run resumed."""
    umask, resume = rng.choice(UMASKS), rng.random() < 0.5

    def harm(folder: Path) -> None:
        if not resume:
            (folder / "run").rename(folder / "out")
            for path in [folder / "out", *(folder / "out").rglob("*")]:
                path.chmod(0o700 if path.is_dir() else 0o600)

    command = prune("--resume") if resume else prune("--output.overwrite", "true")
    step = Step(command, expects="passes", reference="resumed" if resume else "run", checks=(modes_follow(umask),))
    needs = ("models/bert", "data", "run.yaml", "out.state" if resume else "run")
    return Case(f"umask {umask:03o}, {' '.join(command[3:])}", (step,), harm=harm, umask=umask, needs=needs)


THEMES = (whole, whole, replaced, whole)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

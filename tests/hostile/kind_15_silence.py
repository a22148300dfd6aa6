"""Kind 15: what a run does is said while it does it, and figures say what they are of."""

import re
from collections.abc import Iterator

from tests.hostile.case import SILENT, Case, Check, Done, Step, prune
from tests.hostile.mutations import Random

LONGEST = 8  # seconds


def says_its_stages(done: Done) -> str | None:
    """A run names its stages: what it begins with, its rounds, the end."""
    if done.code:
        return None
    for words in ("dense: ", "load it:"):
        if words not in done.stdout:
            return f"the run does not say {words!r}"
    return None


def names_its_kl(done: Done) -> str | None:
    """A round's line says of what its KL is, where it is not that of the result."""
    for line in done.stdout.splitlines():
        if (
            re.match(r"round \d+/\d+ ", line)
            and "KL" in line
            and not re.search(r"(calibration|unrefitted|before|refit)", line)
        ):
            return "a round's line shows a KL without saying of what"
    return None


def says_something(done: Done) -> str | None:
    """On a terminal, the run is not silent for long."""
    longest = re.search(rf"{SILENT} ([\d.]+)", done.stdout)
    return f"is silent for {longest[1]} s" if longest and float(longest[1]) > LONGEST else None


CHECKS: tuple[Check, ...] = (says_its_stages, names_its_kl, says_something)


def runs(rng: Random) -> Case:
    """Some run."""
    way = rng.choice(
        [
            ("--search.rounds", str(rng.randint(1, 4))),
            ("--search.criterion", "kfac_obs", "--search.rounds", "null"),
            ("--search.policy.name", "ucb1"),
            ("--search.rule", "single"),
            ("--recovery", '{"epochs": 0.2}'),
            ("--prune.layout", "auto"),
            ("--compensation", "null"),
            ("--search.rule", "interactions"),
            ("--task.batch_size", str(rng.randint(1, 20))),
            ("--search.pulls_per_arm", str(rng.randint(1, 5))),
            ("--task.calibration_examples", str(rng.randint(9, 48))),
            ("--seed", str(rng.randrange(100))),
        ]
    )
    more = ("--seed", str(rng.randrange(10**6)))
    config = rng.choice(["run.yaml", "sizes.yaml", "llama.yaml"])
    return Case(
        f"{config} {' '.join(way)}",
        (Step(prune(*way, *more, config=config), expects="any", checks=CHECKS),),
        needs=("models/bert", "models/llama", "data", config),
    )


def watched(rng: Random) -> Case:
    """A slow run, or another slow command, that somebody watches on a terminal."""
    command = rng.choice(
        [
            prune("--search.pulls_per_arm", "1"),
            prune(
                "--search.criterion", rng.choice(["kfac_obs", "obs", "taylor", "fisher"]), "--search.rounds", "null"
            ),
            prune("--recovery", '{"epochs": 0.5}'),
            prune("--compensation", "mask_tuning"),
            prune("--task.batch_size", "4"),
            ("plan", "--config", "run.yaml"),
            ("evaluate", "run"),
            ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out"),
        ]
    )
    step = Step(command, expects="any", checks=(says_something,))
    return Case(f"watched: {' '.join(command)}", (step,), needs=("models/bert", "data", "run.yaml", "run"), slow=0.05)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        yield watched(rng)
        for _ in range(3):
            yield runs(rng)

"""Kind 6: a push fails, or something comes between: the output is safe, its state and lock are kept until it is up."""

from collections.abc import Iterator
from pathlib import Path

from tests.hostile.case import Case, Check, Done, Step, prune
from tests.hostile.mutations import Random, edit_json

PATTERNS = (
    "POST /api/repos/create",
    "POST /api/models/.*/preupload",
    "POST /api/models/.*/commit",
    "PUT /storage",
    "POST /api/validate-yaml",
    "GET /api/models",
    ".*/info/lfs/objects/batch",
    "POST",
    "",
    "GET /api/models/.*/tree",
)
STATUSES = (0, 0, 400, 401, 403, 404, 409, 410, 412, 413, 418, 422, 429, 451, 500, 502, 503, 504, 507, 301, 204)
PUSH = ("--output.push_to_hub", "me/model")


def says_how_to_push(done: Done) -> str | None:
    """After a failed push the user reads that the output is safe, and how to push it."""
    if done.code == 0 or "round 1/" not in done.stdout:
        return None
    if not (done.folder / "out" / "model.safetensors").exists() and not list(
        done.folder.glob("out/*/model.safetensors")
    ):
        return "the output is not there after a failed push"
    lines = [line for line in done.stderr.splitlines() if line.startswith("mabprune: ")]
    return None if lines and "mabprune push" in lines[-1] else "a failed push does not say how to push"


def kept_locked(done: Done) -> str | None:
    """While something is sent, the lock is held."""
    return f"sent while the lock is free: {done.unlocked[0]}" if done.unlocked else None


def is_published(done: Done) -> str | None:
    """After a command that passed, the whole checkpoint is on the Hub."""
    if done.code:
        return None
    whole = [
        files for files in done.published.values() if {"model.safetensors", "config.json", "README.md"} <= set(files)
    ]
    return None if whole else "exit 0, and nothing is published"


CHECKS: tuple[Check, ...] = (says_how_to_push, kept_locked, is_published)


def fails(rng: Random) -> Case:
    """A request fails, then the same run is resumed."""
    pattern, status = rng.choice(PATTERNS), rng.choice(STATUSES)
    sizes = rng.random() < 0.25
    config, reference = ("sizes.yaml", "sizes") if sizes else ("run.yaml", "run")
    first = Step(prune(*PUSH, config=config), expects="any", faults=((pattern, status),), checks=CHECKS)
    again = Step(prune(*PUSH, "--resume", config=config), "", "equal", reference, checks=CHECKS)
    push = Step(("push", "out", "me/model"), expects="any", checks=(is_published,))
    second = again if sizes or rng.random() < 0.6 else push
    return Case(
        f"{pattern or 'every request'} answers {status}, then {second.command[0]}",
        (first, second),
        needs=("models/bert", "data", config),
        leaves=True,
    )


def refused_first(rng: Random) -> Case:
    """What the Hub would refuse anyway is refused before the search."""
    name, environment = rng.choice(
        [
            ("somebody/else", {}),
            ("me/model", {"HF_TOKEN": "hf_wrongAbCdEfGhIjKlMnOp"}),
            ("me/model", {"HF_TOKEN": ""}),
            ("me/model", {"HF_TOKEN": "two words"}),
            ("a b", {}),
            ("", {}),
            ("me/model/x", {}),
            ("me/" + "x" * 200, {}),
            ("../me", {}),
            ("me/mo..del", {}),
            ("me/model.git", {}),
            ("--me", {}),
            ("me/-x", {}),
        ]
    )
    return Case(
        f"push_to_hub {name[:20]!r} {environment}",
        (
            Step(
                prune(f"--output.push_to_hub={name}"),
                expects="any",
                environment=environment,
                checks=(says_how_to_push, kept_locked),
            ),
        ),
        leaves=True,
    )


def second_run(rng: Random) -> Case:
    """After a failed push another run does not replace what is not published yet, unless it is told to."""
    first = Step(prune(*PUSH), expects="any", faults=(("commit", 503),), checks=CHECKS)
    other = Step(prune("--seed", str(rng.randint(1, 9))), expects="refused")
    last = Step(prune(*PUSH, "--resume"), checks=CHECKS)
    return Case("another run after a failed push", (first, other, last), leaves=True)


def nothing_fails(rng: Random) -> Case:
    """A push that nothing comes between."""
    return Case(
        "a push", (Step(prune(*PUSH), expects="passes", checks=CHECKS), Step(prune(*PUSH, "--resume"), checks=CHECKS))
    )


def edited_between(rng: Random) -> Case:
    """The output is harmed between a failed push and the next try."""
    seed = rng.randrange(2**31)
    first = Step(prune(*PUSH), expects="any", faults=(("commit|create", rng.choice(STATUSES[2:])),), checks=CHECKS)

    def harm(done: Done) -> str | None:
        path: Path = done.folder / "out" / "mabprune" / "report.json"
        if path.exists():
            edit_json(path, Random(seed))
        return None

    harming = Step(first.command, "", "any", checks=(*CHECKS, harm), faults=first.faults)
    return Case(
        "a report edited between two tries", (harming, Step(prune(*PUSH, "--resume"), expects="equal")), leaves=True
    )


THEMES = (fails, fails, refused_first, fails, second_run, fails, edited_between)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    yield nothing_fails(rng)
    while True:
        for theme in THEMES:
            yield theme(rng)

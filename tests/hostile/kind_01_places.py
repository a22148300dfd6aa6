"""Kind 1: an output, its state, its logs or its unfinished folders where something else lies already."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import OWN, Case, one, prune
from tests.hostile.mutations import Random, odd_name

MARK = ".mabprune-output.json"
FINISHED = ("models/bert", "data", "run.yaml", "run")


def put_fifo(path: Path, rng: Random) -> None:
    os.mkfifo(path)


def put_socket(path: Path, rng: Random) -> None:
    here = os.open(".", os.O_RDONLY)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"/proc/self/fd/{here}/../../../../tmp/hostile-{rng.randrange(10**9)}")
    name = listener.getsockname()
    os.rename(name, path) if os.stat(name).st_dev == os.stat(path.parent).st_dev else shutil.move(name, path)
    os.close(here)


def put_device(path: Path, rng: Random) -> None:
    os.mknod(path, 0o20666, os.makedev(1, rng.choice([3, 5, 7])))


def put_file(path: Path, rng: Random) -> None:
    path.write_text("years of work")


def put_dangling_link(path: Path, rng: Random) -> None:
    path.symlink_to(rng.choice(["nowhere", "no/where", path.name]))


def put_link_to_folder(path: Path, rng: Random) -> None:
    target = path.parent / "elsewhere"
    target.mkdir()
    if rng.random() < 0.5:
        (target / "thesis.txt").write_text("years of work")
    path.symlink_to(rng.choice([target, Path("elsewhere")]))


def put_link_to_file(path: Path, rng: Random) -> None:
    (path.parent / "thesis.txt").write_text("years of work")
    path.symlink_to("thesis.txt")


def put_link_to_device(path: Path, rng: Random) -> None:
    path.symlink_to(rng.choice(["/dev/null", "/dev/full", "/dev/zero", "/proc/self/fd/1"]))


def put_link_to_the_model(path: Path, rng: Random) -> None:
    path.symlink_to(rng.choice(["models/bert", "data", "models", "."]))


def put_strangers(path: Path, rng: Random) -> None:
    path.mkdir()
    names = [
        "thesis.txt",
        ".hidden",
        "model.safetensors",
        "config.json",
        "lock",
        "a/b/c.txt",
        odd_name(rng),
        "x.partial",
    ]
    for name in rng.sample(names, rng.randint(1, 3)):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("years of work")


def put_special_inside(path: Path, rng: Random) -> None:
    path.mkdir()
    rng.choice([put_fifo, put_device, put_dangling_link, put_link_to_device])(
        path / rng.choice(["x", ".x", "lock"]), rng
    )


def put_folders_of_strangers(path: Path, rng: Random) -> None:
    (path / "plans" / "more").mkdir(parents=True)
    (path / "plans" / "plan.txt").write_text("years of work")


SOMETHING: tuple[Callable[[Path, Random], None], ...] = (
    put_fifo,
    put_device,
    put_file,
    put_dangling_link,
    put_link_to_folder,
    put_link_to_file,
    put_link_to_device,
    put_link_to_the_model,
    put_strangers,
    put_special_inside,
    put_folders_of_strangers,
)


def words(rng: Random) -> tuple[str, ...]:
    """Options that make a run bolder."""
    overwrite = ("--output.overwrite", "true") if rng.random() < 0.6 else ()
    return (*overwrite, *(("--resume",) if rng.random() < 0.3 else ()))


def in_the_way(rng: Random) -> Case:
    """Something lies where the output goes."""
    put, seed = rng.choice(SOMETHING), rng.randrange(2**31)
    return one(
        f"the output is {put.__name__[4:]}",
        prune(*words(rng)),
        harm=lambda folder: put(folder / "out", Random(seed)),
        own=("out.state", "out.logs", "out.state/lock"),
    )


def state_in_the_way(rng: Random) -> Case:
    """Something lies where the state, the lock or the saved search goes."""
    put, seed = rng.choice(SOMETHING), rng.randrange(2**31)
    place = rng.choice(
        [
            "out.state",
            "out.state",
            "out.state/lock",
            "out.state/search_state.safetensors",
            "out.state/config.yaml",
            "out.state/config.yaml.partial",
        ]
    )

    def harm(folder: Path) -> None:
        (folder / place).parent.mkdir(exist_ok=True)
        put(folder / place, Random(seed))

    return one(f"{place} is {put.__name__[4:]}", prune(*words(rng)), harm=harm, own=("out", "out.logs"))


def logs_in_the_way(rng: Random) -> Case:
    """Something lies where trackers write."""
    put, seed = rng.choice(SOMETHING), rng.randrange(2**31)
    command = prune(*words(rng), "--output.log_with", '["tensorboard"]')
    return one(
        f"the logs are {put.__name__[4:]}",
        command,
        harm=lambda folder: put(folder / "out.logs", Random(seed)),
        adds=("out.logs", "elsewhere"),
        own=("out", "out.state"),
        expects="any",
    )


def unfinished_in_the_way(rng: Random) -> Case:
    """What looks like a folder that a killed run left, and is somebody's."""
    put, seed = rng.choice(SOMETHING), rng.randrange(2**31)
    name = f".out.mabprune-{''.join(rng.choices('abcdefghijk_123', k=8))}{rng.choice(['.partial', '.old'])}"
    return one(
        f"{name[-8:]} is {put.__name__[4:]}", prune(*words(rng)), harm=lambda folder: put(folder / name, Random(seed))
    )


def earlier_output_and_more(rng: Random) -> Case:
    """An earlier output, in which somebody has put something, or changed or edited the mark."""
    seed, place = rng.randrange(2**31), rng.choice(["out", "out/figures", "out/mabprune", "out/new"])
    what = rng.randrange(5)

    def harm(folder: Path) -> None:
        draw = Random(seed)
        (folder / "run").rename(folder / "out")
        if what < 3:
            (folder / place).mkdir(exist_ok=True)
            draw.choice(SOMETHING[:-3])(folder / place / draw.choice(["notes.txt", ".notes", "x.partial"]), draw)
        elif what == 3:
            victim = draw.choice(["model.safetensors", "README.md", "mabprune/report.json"])
            (folder / "out" / victim).unlink()
            draw.choice(SOMETHING)(folder / "out" / victim, draw)
        else:
            mark = folder / "out" / MARK
            content = json.loads(mark.read_text())
            added = draw.choice(["../taken/thesis.txt", "notes.txt", "/etc/passwd", "7"])
            content["files"][added] = draw.choice([None, 7, "0" * 64, [], {}])
            (folder / "out" / "notes.txt").write_text("years of work")
            mark.write_text(draw.choice(["{", "[]", "null", json.dumps(content), '{"made_by": "hf_mabprune"}']))

    listed = what == 4
    command = prune("--output.overwrite", "true", *words(rng)[2:])
    return one(
        f"an earlier output {'with an edited mark' if listed else 'with something in it'}",
        command,
        harm=harm,
        needs=FINISHED,
        expects="any" if what == 3 or "--resume" in command else "refused",  # which may find it finished
        own=("out", "out.state", "out.logs") if what == 3 else ("out.state", "out.logs"),
    )


def over_sources(rng: Random) -> Case:
    """The output is, holds or lies in what the run works from."""
    place = rng.choice(
        [
            "models/bert",
            "models",
            "data",
            "data/out",
            "models/bert/out",
            ".",
            "..",
            "./",
            "models/../data",
            "data/train.parquet",
            "data/train.parquet/out",
            "run.yaml",
            "models/bert/config.json",
            "{folder}",
            "{folder}/data",
            "data/",
            "out/../data",
            "models/bert/.",
        ]
    )
    return one(
        f"the output is {place}",
        prune("--output.dir", place, "--output.overwrite", "true"),
        output=place,
        own=(),
        expects="any" if place.endswith("/out") else "refused",
    )


def inside_another_run(rng: Random) -> Case:
    """The output lies in, around or beside the output of a run that goes on or was interrupted."""
    place = rng.choice(["other/out", "other/a/b", "other.state/out", "other", "./other/", "other/mabprune/x"])
    locked, there = rng.random() < 0.6, rng.random() < 0.5
    own_again = place in ("other", "./other/") and not locked
    free = own_again or not (locked or there or "state" in place)

    def harm(folder: Path) -> None:
        (folder / "other.state").mkdir()
        (folder / "other.state" / "search_state.safetensors").write_bytes(b"rounds and rounds")
        (folder / "other.state" / "config.yaml").write_text("model: {}")
        if there:
            shutil.copytree(folder / "run", folder / "other")

    return one(
        f"the output is {place} of {'a running' if locked else 'an interrupted'} run",
        prune("--output.dir", place, "--output.overwrite", "true"),
        harm=harm,
        needs=FINISHED,
        output=place,
        locked="other.state/lock" if locked else "",
        own=("other", "other.state") if own_again else ("other",) if free else ("other.state/lock",),
        expects="any" if free else "refused",
    )


def running(rng: Random) -> Case:
    """Another run holds the lock."""
    command = rng.choice(
        [
            prune(*words(rng)),
            ("cut", "run", "--target.macs", "0.2", "--output.dir", "out", "--output.overwrite", "true"),
        ]
    )
    place = rng.choice(["out", "./out", "out/", "models/../out", "{folder}/out"])
    return one(
        f"another run writes to {place}",
        (*command, "--output.dir", place),
        needs=FINISHED,
        locked="out.state/lock",
        own=("out.state",),
        expects="refused",
    )


def cut_over(rng: Random) -> Case:
    """A cut goes over something."""
    put, seed = rng.choice(SOMETHING), rng.randrange(2**31)
    place = rng.choice(["out", "run/out", "run", "run/.", "run/mabprune", "data", "models/bert", "./run/../run"])

    def harm(folder: Path) -> None:
        if place == "out":
            put(folder / "out", Random(seed))

    return one(
        f"a cut goes over {place}",
        ("cut", "run", "--target.parameters", "0.2", "--output.dir", place, "--output.overwrite", "true"),
        harm=harm,
        needs=FINISHED,
        own=("out.state", "out.logs"),
        reference="cut",
        expects="refused" if place != "out" else "any",
        output=place,
    )


def wins(rng: Random) -> Case:
    """An empty folder, or an earlier output: these go."""
    over = rng.random() < 0.5

    def harm(folder: Path) -> None:
        (folder / "run").rename(folder / "out") if over else (folder / "out").mkdir()

    return one(
        "an earlier output" if over else "an empty folder",
        prune("--output.overwrite", "true"),
        "passes",
        harm=harm,
        needs=FINISHED,
        own=OWN,
    )


THEMES = (
    in_the_way,
    state_in_the_way,
    logs_in_the_way,
    unfinished_in_the_way,
    earlier_output_and_more,
    over_sources,
    inside_another_run,
    running,
    cut_over,
    in_the_way,
    state_in_the_way,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    yield wins(rng)
    while True:
        for theme in THEMES:
            yield theme(rng)

"""Kind 3: what could be known before the search is found out after it: places, and models that cannot be saved."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, one, prune
from tests.hostile.mutations import Random, odd_name
from tests.hostile.prepared import edit_yaml as set_yaml
from tests.hostile.programs import program

NEEDS = ("models/bert", "data", "run.yaml", "run")


def to(place: str, rng: Random, in_file: bool | None = None) -> tuple[tuple[str, ...], Callable[[Path], Any]]:
    """Gives a command that writes to a place, named on the command line or in the file, and what prepares the file."""
    if rng.random() < 0.25:
        return ("cut", "run", "--target.parameters", "0.2", f"--output.dir={place}"), lambda folder: None
    if in_file or (in_file is None and rng.random() < 0.5):
        return prune(), lambda folder: set_yaml(
            folder / "run.yaml", {"output.dir": place.replace("{folder}", str(folder))}
        )
    return prune(f"--output.dir={place}"), lambda folder: None


def make(
    name: str, place: str, rng: Random, harm: Callable[[Path], Any] = lambda folder: None, **options: Any
) -> Case:
    """A run that writes to a place."""
    command, prepare = to(place, rng, options.pop("in_file", None))

    def all_harm(folder: Path) -> None:
        prepare(folder)
        harm(folder)

    options = {"expects": "equal", "output": place, "own": (place, f"{place}.state", f"{place}.logs")} | options
    return one(
        f"{name} ({command[0]})",
        command,
        harm=all_harm,
        needs=NEEDS,
        early=True,
        reference="cut" if command[0] == "cut" else "run",
        **options,
    )


def mounted(rng: Random) -> Case:
    """The output is a mount point, as every Docker volume is; or lies in one."""
    below, read_only = rng.choice(["", "", "/out", "/a/b"]), rng.random() < 0.3

    def harm(folder: Path) -> None:
        (folder / "volume").mkdir()
        (folder / "backing").mkdir()

    # What the command wrote into the mount is seen in what was mounted.
    case = make(
        f"a mount point{' that is read-only' * read_only}",
        f"volume{below}",
        rng,
        harm,
        mounts=(("backing", "volume", "ro" if read_only else ""),),
        output=f"backing{below}",
        own=("backing", "volume.state", "volume.logs"),
    )
    return case


def full(rng: Random) -> Case:
    """The disk of the output is too small."""
    size = rng.choice(["size=4k", "size=64k", "size=200k", "nr_inodes=3"])

    def harm(folder: Path) -> None:
        (folder / "volume").mkdir()

    place = rng.choice(["volume/out", "volume"])
    return make(
        f"a disk of {size}", place, rng, harm, mounts=(("", "volume", size),), own=("volume.state",), expects="any"
    )


def odd_place(rng: Random) -> Case:
    """A place that is none."""
    place = rng.choice(
        [
            "",
            ".",
            "..",
            "./.",
            "/",
            "//",
            "~",
            "~/",
            "~nobody/x",
            "out/..",
            "/dev/null",
            "/dev/null/out",
            "/proc/out",
            "/proc/self/out",
            "/sys/out",
            "/dev/full",
            "/nonexistent/../proc/x",
            "out\x00x",
            "\n",
            " ",
            "-",
            "run.yaml/out",
            "data/train.parquet/x/y",
            "http://evil.example/out",
            "s3://b/out",
            "file:///tmp/x",
            "hf://me/x",
            "C:\\out",
            "CON",
        ]
    )
    own = (place,) if place in ("\n", " ", "-", "C:\\out", "CON") or ":/" in place else ()
    if ":" in place:
        own = (place.split("/")[0],)
    own = ("run-parameters-0.2",) if place == "" else own  # the default of a cut
    return make(f"output.dir {place!r}", place, rng, own=(*own, *(f"{each}.state" for each in own)), expects="any")


def in_home(rng: Random) -> Case:
    """A place below the home folder, written with ~."""
    place = rng.choice(["~/out", "~/a/../out", "~/./out", "~/runs/out"])
    end = "home/runs/out" if "runs" in place else "home/out"
    return make(
        f"output.dir {place}",
        place,
        rng,
        lambda folder: (folder / "home").mkdir(),
        output=end,
        own=("home",),
        in_file=True,
    )


def long_name(rng: Random) -> Case:
    """A name that is too long, of itself or with what is put behind it."""
    length = rng.choice([255, 256, 254, 250, 240, 230, 300, 5000])
    letter = rng.choice(["x", "é", "🦙"])
    name = letter * (length // len(letter.encode()))
    return make(f"a name of {length} bytes", name, rng)


def odd_named(rng: Random) -> Case:
    """A name that is odd, but is one."""
    name = odd_name(rng).strip() or "x"
    return make(f"output.dir {name!r:.40}", name, rng, expects="equal", in_file=True)


def not_writable(rng: Random) -> Case:
    """The folder around it, or one further up, may not be written to; root may not help."""
    place, closed = rng.choice(
        [
            ("closed/out", "closed"),
            ("closed/a/out", "closed"),
            ("closed/out", "closed/out"),
            ("a/b/out", "a/b"),
            ("out", "out.state"),
        ]
    )
    mode = rng.choice([0o555, 0o000, 0o444, 0o111])

    def harm(folder: Path) -> None:
        (folder / closed).mkdir(parents=True)
        (folder / closed).chmod(mode)

    return make(f"{closed} of mode {mode:o}", place, rng, harm, plain_user=True, own=(place, f"{place}.state"))


def missing_parents(rng: Random) -> Case:
    """Folders that are not there yet."""
    place = rng.choice(
        ["a/b/c/out", "./a/out/", "a//b/./out", "a/../out", "{folder}/a/b/out", "a/b/../../out", "out/"]
    )
    end = place.replace("{folder}/", "").rstrip("/")
    return make(
        f"output.dir {place}", place, rng, output=end, own=("a", "out", "out.state", "out.logs"), expects="equal"
    )


def logs_nowhere(rng: Random) -> Case:
    """Trackers cannot write where they shall."""
    place = rng.choice(
        ["/proc/x", "run.yaml", "data/train.parquet/x", "x" * 300, "/dev/null", "closed/x", "~/logs", ""]
    )

    def harm(folder: Path) -> None:
        (folder / "closed").mkdir(mode=0o555)
        (folder / "home").mkdir()

    return one(
        f"log_dir {place!r:.30}",
        prune("--output.log_with", '["tensorboard"]', "--output.log_dir", place),
        "any",
        harm=harm,
        plain_user=True,
        early=True,
        own=("out", "out.state", "out.logs", "home", "~", "hf_mabprune"),
    )


def wrapped(rng: Random) -> Case:
    """A model in memory that something is wrapped around."""
    how = rng.choice(
        [
            "model = torch.nn.DataParallel(model)",
            "model = torch.compile(model, backend='eager')",
            "model.forward = torch.compile(model.forward, backend='eager')",
            "from accelerate import Accelerator\nmodel = Accelerator(cpu=True).prepare(model)",
            "from accelerate import Accelerator\nmodel = Accelerator(cpu=True, mixed_precision='bf16').prepare(model)",
            "from functools import wraps\nold = model.forward\nmodel.forward = wraps(old)(lambda **k: old(**k))",
            "import types\nmodel.forward = types.MethodType(type(model).forward, model)",
            "model.register_forward_hook(lambda m, i, o: o)",
            "model.register_forward_pre_hook(lambda m, i: None)",
            "model.bert.encoder.layer[0].register_forward_hook(lambda m, i, o: None)",
            "model.bert.encoder.layer[0].forward = model.bert.encoder.layer[0].forward",
            "torch.nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].output.dense)",
            "torch.nn.utils.parametrizations.spectral_norm(model.bert.encoder.layer[0].output.dense)",
            "torch.nn.utils.prune.l1_unstructured(model.bert.encoder.layer[0].output.dense, 'weight', amount=0.5)",
            "model = torch.jit.trace(model, torch.ones(1, 4, dtype=torch.long), strict=False)",
            "model.half()",
            "model.to('meta')",
            "model.gradient_checkpointing_enable()",
            "model.train()",
            "model.requires_grad_(False)",
            "model = torch.nn.Sequential(model)",
            "model.bert.encoder.layer[0].output.dense = torch.nn.Linear(48, 32, dtype=torch.float64)",
            "model.bert.encoder.layer[0].output.dense = torch.ao.nn.quantized.dynamic.Linear(48, 32)",
            "model.bert.encoder.layer[0] = torch.nn.Identity()",
            "del model.bert.encoder.layer[1]",
            "model.bert.encoder.layer[1] = model.bert.encoder.layer[0]",
            "model.config.num_hidden_layers = 1",
            "model.config.architectures = None",
            "model.config = None",
            "model.__class__ = type('Mine', (type(model),), {})",
            "model = None",
            "model = 'models/bert'",
            "model = type(model)",
        ]
    )
    return one(
        f"a model in memory: {how.splitlines()[-1][:60]}", (), "any", program=program(after_model=how), early=True
    )


THEMES = (
    mounted,
    odd_place,
    in_home,
    long_name,
    odd_named,
    not_writable,
    missing_parents,
    logs_nowhere,
    wrapped,
    full,
    wrapped,
    mounted,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

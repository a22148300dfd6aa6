"""Kind 10: secrets in addresses and in the environment are nowhere in what is printed, written or published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile.case import Case, Step, prune
from tests.hostile.mutations import Random, reseal
from tests.hostile.prepared import edit_yaml
from tests.hostile.workers import TOKEN

NEEDS = ("models/bert", "data", "run.yaml", "run")
HOSTS = ("127.0.0.1:9", "localhost:9", "[::1]:9", "127.0.0.1:9/a/b", "evil.invalid")
NAMES = (
    "token",
    "access_token",
    "sig",
    "X-Amz-Signature",
    "api_key",
    "apikey",
    "key",
    "password",
    "passwd",
    "secret",
    "client_secret",
    "auth",
    "Authorization",
    "credential",
    "X-Amz-Credential",
    "session",
    "sv=1&sig",
    "jwt",
    "pwd",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "private_token",
    "hf_token",
    "TOKEN",
    "SharedAccessSignature",
    "code",
)


def secret(rng: Random) -> str:
    """Gives a text that occurs nowhere else."""
    return f"S3cr{rng.randrange(16**10):010x}"


def address(rng: Random, planted: str, end: str = "/train.parquet") -> str:
    """Gives an address with a secret in it."""
    host = rng.choice(HOSTS)
    scheme = rng.choice(
        ["http", "https", "https", "ftp", "s3", "hf", "gs", "HTTPS", "git+https", "postgresql", "webdav"]
    )
    how = rng.randrange(6)
    if how == 0:
        return f"{scheme}://user:{planted}@{host}{end}"
    if how == 1:
        return f"{scheme}://{planted}@{host}{end}"
    if how == 2:
        return f"{scheme}://{host}{end}?{rng.choice(NAMES)}={planted}"
    if how == 3:
        return f"{scheme}://{host}{end}?a=b&{rng.choice(NAMES)}={planted}&c=d"
    if how == 4:
        return f"{scheme}://us%40er:{planted}%2F@{host}{end}#x"
    return f"{scheme}://user:pa@{planted}@{host}{end}?{rng.choice(NAMES)}={planted}#{rng.choice(NAMES)}={planted}"


PLACES = (
    "model.name",
    "model.revision",
    "task.dataset.path",
    "task.dataset.data_files.train",
    "task.dataset.name",
    "task.dataset.data_files.test",
    "task.dataset.revision",
    "output.push_to_hub",
    "output.log_dir",
    "output.dir",
    "task.metrics",
    "task.splits.test",
    "task.columns.text",
    "search.policy.name",
    "task.prefix",
    "search.policy",
    "compensation",
    "prune.layout",
    "model.dtype",
)


def in_settings(rng: Random) -> Case:
    """An address in a setting, in the file or on the command line."""
    planted, key = secret(rng), rng.choice(PLACES)
    value: Any = address(rng, planted)
    if key == "task.metrics":
        value = [value]
    in_file = rng.random() < 0.6
    command = rng.choice(["prune", "prune", "plan"])
    words = () if in_file else (f"--{key}={value if isinstance(value, str) else repr(value)}",)
    more = ("--output.log_with", '["tensorboard"]') if rng.random() < 0.4 and command == "prune" else ()

    def harm(folder: Path) -> None:
        if in_file:
            edit_yaml(folder / "run.yaml", {key: value})

    step = Step((command, "--config", "run.yaml", *words, *more), expects="any")
    own = ("out", "out.state", "out.logs", "hf_mabprune", value[: value.find("/")] if isinstance(value, str) else "-")
    return Case(f"{key} = {value!r:.60}", (step,), harm=harm, needs=NEEDS, own=own, secrets=(planted,))


def on_the_command_line(rng: Random) -> Case:
    """An address where a command takes a folder or a name."""
    planted = secret(rng)
    value = address(rng, planted, rng.choice(["", "/x", "/me/model"]))
    command = rng.choice(
        [
            ("evaluate", value),
            ("cut", value, "--target.macs", "0.2"),
            ("push", value, "me/x"),
            ("push", "run", value),
            ("push", "run", "me/x", "--base_model", value),
            ("push", "run", "me/x", "--revision", value),
            ("push", "run", "me/x", "--license", value),
            ("prune", "--config", value),
            ("plan", "--config", value),
            ("prune", "--plugin", value, "--config", "run.yaml"),
            ("evaluate", "run", "--config", value),
            ("evaluate", "run", "--task.dataset.path", value),
            ("evaluate", "run", "--task.dataset.data_files.test", value),
            (value,),
            ("prune", value),
            ("prune", f"--{value}", "x"),
            ("cut", "run", "--target.macs", "0.2", "--model.name", value),
            ("evaluate", "run", "--model.revision", value),
            ("push", "run", "me/x", value),
        ]
    )
    return Case(f"{command!r:.70}", (Step(command, expects="any"),), needs=NEEDS, own=(), secrets=(planted,))


def stored(rng: Random) -> Case:
    """An address in the settings or the report of a finished run."""
    planted, key = secret(rng), rng.choice(PLACES[:12])
    value: Any = address(rng, planted)
    command = rng.choice(
        [
            ("evaluate", "run"),
            ("cut", "run", "--target.parameters", "0.2", "--output.dir", "out"),
            ("push", "run", "me/model"),
            ("prune", "--config", "run/mabprune/config.yaml", "--output.dir", "out"),
        ]
    )
    report, seal = rng.random() < 0.3, rng.randrange(2**31)

    def harm(folder: Path) -> None:
        edit_yaml(folder / "run/mabprune/config.yaml", {key: [value] if key == "task.metrics" else value})
        if report:
            import json

            path = folder / "run/mabprune/report.json"
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"model": value, "layout_reason": f"see {value}"})
            )
        reseal(folder / "run", Random(seal))

    return Case(
        f"{command[0]} of a run with {key} = {value!r:.50}",
        (Step(command, expects="any"),),
        harm=harm,
        needs=NEEDS,
        own=("out", "out.state", "out.logs"),
        leaves=True,
        secrets=(planted,),
    )


def environment(rng: Random) -> Case:
    """Secrets in the environment: the token, proxies, the endpoint."""
    planted = secret(rng)
    given = rng.choice(
        [
            {"HF_TOKEN": f"hf_{planted}AbCdEfGhIj"},
            {"HTTPS_PROXY": f"http://user:{planted}@127.0.0.1:9", "https_proxy": f"http://user:{planted}@127.0.0.1:9"},
            {"HTTP_PROXY": f"http://user:{planted}@127.0.0.1:9", "http_proxy": f"http://user:{planted}@127.0.0.1:9"},
            {"ALL_PROXY": f"socks5://user:{planted}@127.0.0.1:9"},
            {"WANDB_API_KEY": planted},
            {"AWS_SECRET_ACCESS_KEY": planted},
            {"HF_TOKEN": f"hf_{planted} two words"},
            {"HF_TOKEN": f"{planted}\n"},
            {"HF_TOKEN": f"é{planted}"},
        ]
    )
    command = rng.choice(
        [
            prune("--output.push_to_hub", "me/model"),
            ("push", "run", "me/model"),
            ("evaluate", "me/nothing", "--config", "run.yaml"),
            prune("--model.name", "me/nothing"),
            prune("--output.log_with", '["tensorboard"]'),
            ("push", "run", "other/model"),
        ]
    )
    faults = (
        ((rng.choice(["commit", "create", "POST", "GET"]), rng.choice([0, 401, 403, 500])),)
        if rng.random() < 0.5
        else ()
    )
    return Case(
        f"{sorted(given)} {command[0]}",
        (Step(command, expects="any", environment=given, faults=faults),),
        needs=NEEDS,
        own=("out", "out.state", "out.logs"),
        leaves=True,
        secrets=(planted,),
    )


def token_echoed(rng: Random) -> Case:
    """The Hub fails in many ways; the token is never shown."""
    command = rng.choice(
        [("push", "run", "me/model"), prune("--output.push_to_hub", "me/model"), ("push", "run", "x/y")]
    )
    faults = (
        (rng.choice(["commit", "create", "preupload", "PUT", "tree", ""]), rng.choice([0, 400, 401, 403, 404, 500])),
    )
    return Case(
        f"{command[0]}, {faults}",
        (Step(command, expects="any", faults=faults),),
        needs=NEEDS,
        own=("out", "out.state", "out.logs"),
        leaves=True,
        secrets=(TOKEN,),
    )


THEMES = (
    in_settings,
    on_the_command_line,
    stored,
    environment,
    in_settings,
    token_echoed,
    on_the_command_line,
    stored,
)


def cases(rng: Random) -> Iterator[Case]:
    """See `__main__.cases_of`."""
    while True:
        for theme in THEMES:
            yield theme(rng)

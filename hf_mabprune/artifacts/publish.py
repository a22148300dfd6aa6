"""Publishing: a finished checkpoint folder goes to the Hub in one commit, with a card that names its new home."""

import json
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from hf_mabprune.artifacts.card import write_card
from hf_mabprune.artifacts.redaction import hub_model, public_config, public_report, public_url
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.load import sizes_in
from hf_mabprune.config import check
from hf_mabprune.evaluation.report import Report
from hf_mabprune.progress import stage
from hf_mabprune.tasks.base import TASKS

REPOSITORY = RunFolder("")  # names in a repository are paths below its root
SEARCH_STATES = f"{REPOSITORY.search_state.with_suffix('').as_posix()}*"  # of any format there has been
STAYS_HERE = [".*", "*/.*", SEARCH_STATES, "*.lock", "*.lock/*", "*.partial", "*.partial/*"]
REPORT, CONFIG = REPOSITORY.report.as_posix(), REPOSITORY.config.as_posix()
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


@stage("upload")
def push_checkpoint(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload checkpoint",
    license: str | None = None,
    base_model: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a checkpoint folder in one commit; the folder itself stays as it is.

    The card of a run is written again, with the repository in its loading code, and what is published of the run
    holds no local paths. Weights that an earlier push left and this one does not bring are removed, for they could be
    loaded instead.

    Args:
        folder: Folder with config.json and safetensors, of a run or any other.
        repo_id: `owner/name`, or `name` under the owner of the token; made where it does not exist.
        private: Whether a repository that is made is private; None takes the owner's default.
        revision: Branch, made where it does not exist; None is main.
        message: Title of the commit.
        license: License of the dense model; None takes what its own card says, if that can be read.
        base_model: Hub name of the dense model; None takes the report's where that looks like one.
        token: Token with write permission; None takes the one of `hf auth login` or HF_TOKEN.

    Returns:
        URL of the commit.

    Raises:
        FileNotFoundError: If the folder is no complete checkpoint.
        ValueError: If a name is malformed, the run's files cannot be read, or the Hub refuses what it is sent.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    folder = Path(folder)
    check_complete(folder)
    check_name("repo_id", repo_id)
    if base_model is not None:
        check_name("base_model", base_model)
    files = list(filter_repo_objects(_files(folder), ignore_patterns=STAYS_HERE))
    paths = {name: folder / name for name in files}
    run = _read_run(RunFolder(folder)) if {REPORT, CONFIG} <= set(files) else None
    token = checked_token(token)
    api = HfApi(token=token, library_name="hf_mabprune")
    repo_id = _make_repository(api, repo_id, private, revision)
    with tempfile.TemporaryDirectory() as temporary:
        if run is not None:
            license = license or _license(run[0], base_model, token)
            paths |= _for_publication(*run, paths, RunFolder(temporary), repo_id, base_model, license)
        return _commit(api, repo_id, revision, message, paths)


def push_run(folder: RunFolder, repo_id: str) -> None:
    """Pushes what a run wrote: one repository a size, whose names end in that of the size if there are several.

    Args:
        folder: Folder of the run.
        repo_id: Name of the repository, or what the names begin with.

    Raises:
        FileNotFoundError, ValueError, PermissionError, ConnectionError: As `push_checkpoint`.
    """
    sizes = folder.sizes()
    for size in sizes:
        push_checkpoint(size.root, f"{repo_id}-{size.root.name}")
    if not sizes:
        push_checkpoint(folder.root, repo_id)


def check_complete(folder: Path) -> None:
    """Refuses a folder that `from_pretrained` could not load.

    Raises:
        FileNotFoundError: Naming the missing file.
        ValueError: If config.json or the index of the shards is no JSON.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}: give the output.dir of a finished run")
    needed = ["config.json"]
    if (folder / "config.json").is_file():
        needed += _code_files(_read_json(folder / "config.json").get("auto_map") or {})
    for index in sorted(folder.glob("*.safetensors.index.json")):
        needed += sorted(set(_read_json(index).get("weight_map", {}).values()))
    missing = [name for name in needed if not (folder / name).is_file()]
    if not missing and not any(folder.glob("*.safetensors")):
        missing = ["*.safetensors"]
    if missing:
        raise FileNotFoundError(
            f"a checkpoint needs {missing[0]}, {folder} has none: give "
            f"{sizes_in(folder) or 'the output.dir of a finished run'}"
        )


def check_name(argument: str, name: str) -> None:
    """Raises ValueError for what cannot be the name of a repository; `argument` is what the message calls it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ValueError(
            f"{argument} must be name or owner/name, of letters, digits, '-', '_' and '.', got {name!r}"
        ) from None


def checked_token(token: str | None) -> str:
    """Gives the token, or the one that is logged in.

    Raises:
        PermissionError: If there is none, or it cannot be one.
    """
    token = (token or get_token() or "").strip()
    if not re.fullmatch(r"[!-~]+", token):
        fault = "is not one word of plain characters" if token else "is missing"
        raise PermissionError(f"pushing needs a token, and it {fault}: run `hf auth login`, or set HF_TOKEN")
    return token


def _code_files(auto_map: dict[str, Any]) -> list[str]:
    """Lists the files beside the weights that an auto_map names; `owner/name--module.Class` lives elsewhere."""
    names = [name for name in auto_map.values() if isinstance(name, str) and "--" not in name]
    return sorted({f"{name.split('.')[0]}.py" for name in names})


def _read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; raises ValueError for anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): save the checkpoint again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got a {type(content).__name__}: save the checkpoint again")
    return content


def _files(folder: Path) -> list[str]:
    """Lists every file below a folder, as names in a repository."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _read_run(folder: RunFolder) -> tuple[Report, str]:
    """Reads the report and the config of a run; they are checked before anything is sent."""
    try:
        config_yaml = folder.config.read_text()
        check(yaml.safe_load(config_yaml))
        report = Report.from_json(folder.report)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{folder.details} is not of this version ({' '.join(str(error).split())}): "
            "push with the hf_mabprune that wrote it, or move it away to push the checkpoint alone"
        ) from None
    TASKS.get(report.task)  # which the card asks
    return report, config_yaml


def _make_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> str:
    """Makes repository and branch where they are not there; gives the full name, owner/name."""
    with _one_line_errors(api, repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return repo_id


def _for_publication(
    report: Report,
    config_yaml: str,
    paths: dict[str, Path],
    temporary: RunFolder,
    repo_id: str,
    base_model: str | None,
    license: str | None,
) -> dict[str, Path]:
    """Writes anew the files of a run that are not published as they are: name -> path."""
    for name in (name for name in paths if name.startswith(f"{REPOSITORY.figures.as_posix()}/")):
        link = temporary.root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(paths[name].resolve())  # the card shows the figures that it finds beside it
    write_card(report, config_yaml, temporary.root, base_model=base_model, license=license, repo_id=repo_id)
    temporary.details.mkdir()
    temporary.report.write_text(public_report(report))
    temporary.config.write_text(public_config(config_yaml))
    return {REPOSITORY.card.as_posix(): temporary.card, REPORT: temporary.report, CONFIG: temporary.config}


def _license(report: Report, base_model: str | None, token: str) -> str | None:
    """Reads the license in the dense model's own card, in its folder or else on the Hub; None where none is read."""
    local, name = Path(report.model) / REPOCARD_NAME, base_model or hub_model(report.model)
    cards: list[str | Path] = [local] if local.is_file() else []
    for card in cards + ([name] if name else []):
        with suppress(OSError, ValueError, HTTPError, yaml.YAMLError):
            found = ModelCard.load(card, token=token, ignore_metadata_errors=True).data.license
            if isinstance(found, str):
                return found
    return None


def _commit(api: HfApi, repo_id: str, revision: str | None, message: str, files: dict[str, Path]) -> str:
    """Adds files and removes weights that are not among them, in one commit; gives its URL."""
    with _one_line_errors(api, repo_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")  # arms.parquet
        stale = [
            CommitOperationDelete(name)
            for name in api.list_repo_files(repo_id, revision=revision)
            if WEIGHTS.fullmatch(name) and name not in files
        ]
        added = [CommitOperationAdd(name, path) for name, path in files.items()]
        # Not upload_folder: with Xet it makes several commits.
        return api.create_commit(repo_id, [*stale, *added], commit_message=message, revision=revision).commit_url


@contextmanager
def _one_line_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turns errors of the Hub and of the way to it into built-in ones of one line, without the token."""
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, ValueError, KeyError, RuntimeError) as error:
        # The client wraps what went wrong with a large file.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
        explained = _explain(cause, public_url(api.endpoint), repo_id)
        line = " ".join(str(explained).split()).replace(str(api.token), "***")
        raise type(explained)(line) from None


def _explain(error: BaseException, endpoint: str, repo_id: str) -> Exception:
    """Gives the built-in error that says what is wrong and what to do."""
    if isinstance(error, HfHubHTTPError):
        return _explain_refusal(error.response.status_code, error.server_message, endpoint, repo_id)
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError("HF_HUB_OFFLINE is set, so nothing can be pushed: unset it")
    if isinstance(error, HTTPError):
        return ConnectionError(
            f"cannot reach {endpoint} ({type(error).__name__}): check the network, the proxy settings and HF_ENDPOINT"
        )
    if isinstance(error, (json.JSONDecodeError, KeyError)):
        return ConnectionError(f"{endpoint} does not answer as a Hub does: check HF_ENDPOINT, or try again later")
    return ValueError(str(error)) if isinstance(error, ValueError) else ConnectionError(f"the upload failed: {error}")


def _explain_refusal(status: int, said: str | None, endpoint: str, repo_id: str) -> Exception:
    """Gives the built-in error for a status that is no success."""
    answer = f"{endpoint} answers {status}" + (f", {said}" if said else "")
    if status == 401:
        return PermissionError(f"the token is not valid ({answer}): run `hf auth login`, or set HF_TOKEN")
    if status == 403:
        return PermissionError(
            f"no permission to write to {repo_id} ({answer}): use a token with write permission, or another repo_id"
        )
    if status == 404:
        return ValueError(f"{repo_id} is not there ({answer}): check repo_id, revision and HF_ENDPOINT")
    if status in (409, 412):
        return ValueError(f"{repo_id} was changed by someone else meanwhile ({answer}): push again")
    if status == 429 or status >= 500:
        return ConnectionError(f"the Hub cannot take {repo_id} now ({answer}): try again later")
    return ValueError(f"the Hub refuses {repo_id} ({answer}): mend what it says and push again")

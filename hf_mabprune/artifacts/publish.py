"""Publishing: a finished checkpoint folder goes to the Hub in one commit, with a card that names its new home."""

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from hf_mabprune.artifacts import checksums
from hf_mabprune.artifacts.base_card import Origin, read_origin
from hf_mabprune.artifacts.card import write_card
from hf_mabprune.artifacts.eval_results import write_eval_results
from hf_mabprune.artifacts.publishable import (
    check_complete,
    check_fit,
    check_foreign_processor,
    check_run_unchanged,
    publishable_files,
)
from hf_mabprune.artifacts.redaction import public_config, public_report, public_url
from hf_mabprune.artifacts.run_folder import RunFolder
from hf_mabprune.checkpoints.modeling_file import MODELING_FILE
from hf_mabprune.checkpoints.processors import load_processor
from hf_mabprune.config import check, parse_yaml
from hf_mabprune.evaluation.report import Report
from hf_mabprune.progress import stage
from hf_mabprune.runtime.files import sha256
from hf_mabprune.tasks.base import TASKS

REPOSITORY = RunFolder("")  # names in a repository are paths below its root
REPORT, CONFIG = REPOSITORY.report.as_posix(), REPOSITORY.config.as_posix()
README, CHECKSUMS = REPOSITORY.card.as_posix(), REPOSITORY.checksums.as_posix()
PINNING = "Pin the commit whose code the card loads"
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

    Where its card shows how to load code of the repository, a second commit puts the name of the first into it.

    What would not load, or does not belong together, is refused before anything is sent. The card of a run is written
    again, with the repository in its loading code; what is published of the run holds no local paths, and its
    checksums are those of what is published. Weights that an earlier push left and this one does not bring are
    removed, for they could be loaded instead.

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
        ValueError: If a name is malformed, weights do not fit their config, code is not this package's, a link leads
            out of the folder, the run's files have changed or cannot be read, or the Hub refuses what it is sent.
        PermissionError: If there is no token, or it may not write there.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    if base_model is not None:
        check_name("base_model", base_model)
    token = checked_token(token)
    with tempfile.TemporaryDirectory() as temporary:
        prepared = _prepare(Path(folder), repo_id, Path(temporary), base_model, license, token)
        return _send(prepared, private, revision, message, token)


def push_run(folder: RunFolder, repo_id: str) -> None:
    """Pushes what a run wrote: one repository a size, whose names end in that of the size if there are several.

    Args:
        folder: Folder of the run.
        repo_id: Name of the repository, or what the names begin with.

    Raises:
        FileNotFoundError, ValueError, PermissionError, ConnectionError: As `push_checkpoint`.
    """
    sizes = [(size.root, f"{repo_id}-{size.root.name}") for size in folder.sizes()] or [(folder.root, repo_id)]
    token = checked_token(None)
    with tempfile.TemporaryDirectory() as temporary:
        places = [Path(temporary, str(number)) for number in range(len(sizes))]
        prepared = [_prepare(*size, place, token=token) for size, place in zip(sizes, places, strict=True)]
        for each in prepared:
            _send(each, token=token)


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


@dataclass
class _Prepared:
    """A checkpoint that has been checked, and may be sent.

    Attributes:
        repo_id: Name of the repository, as it was given.
        paths: Name in the repository -> file.
        describe: Writes anew what a run publishes of itself, for the full name of the repository, and the commit that
            its card is to name; None where the checkpoint is of no run.
        runs_code: Whether the card shows how to load it by code in the repository.
    """

    repo_id: str
    paths: dict[str, Path]
    describe: Callable[..., dict[str, Path]] | None = None
    runs_code: bool = False


def _prepare(
    folder: Path,
    repo_id: str,
    temporary: Path,
    base_model: str | None = None,
    license: str | None = None,
    token: str = "",
) -> _Prepared:
    """Checks everything that can be checked before anything is sent, and writes the card; errors as `push_checkpoint`.

    Args:
        folder: Folder of the checkpoint.
        repo_id: Name of the repository.
        temporary: Place for files that are written anew.
        base_model, license, token: As those of `push_checkpoint`.
    """
    check_complete(folder)
    check_name("repo_id", repo_id)
    paths = publishable_files(folder)
    run = _read_run(RunFolder(folder)) if {REPORT, CONFIG} <= paths.keys() else None
    check_fit(folder, run is not None and not check(yaml.safe_load(run[1])).model.trust_remote_code)
    if run is None:
        check_foreign_processor(folder)
        return _Prepared(repo_id, paths)
    report, config_yaml = run
    load_processor(TASKS.get(report.task).processor_class, str(folder))
    check_run_unchanged(RunFolder(folder))
    origin = read_origin(report, base_model, token, license)

    def describe(full_name: str, commit: str | None = None) -> dict[str, Path]:
        place = RunFolder(temporary / "described")
        shutil.rmtree(place.root, ignore_errors=True)
        place.root.mkdir(parents=True)
        return _for_publication(report, config_yaml, paths, place, full_name, base_model, origin, commit)

    describe(repo_id)  # a card that cannot be written shows before the repository is made
    return _Prepared(repo_id, paths, describe, MODELING_FILE in paths)


def _send(
    prepared: _Prepared,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload checkpoint",
    token: str | None = None,
) -> str:
    """Makes the repository and sends what was prepared; gives the URL of the commit."""
    api = HfApi(token=token, library_name="hf_mabprune")
    repo_id = _make_repository(api, prepared.repo_id, private, revision)
    written = prepared.describe(repo_id) if prepared.describe else {}
    done = _commit(api, repo_id, revision, message, prepared.paths | written)
    if prepared.describe and prepared.runs_code:  # the card pins the commit before its own, whose name it cannot know
        pinned = prepared.describe(repo_id, done.oid)
        _commit(api, repo_id, revision, PINNING, {name: pinned[name] for name in (README, CHECKSUMS)}, whole=False)
    return done.commit_url


def _read_run(folder: RunFolder) -> tuple[Report, str]:
    """Reads the report and the config of a run; they are checked before anything is sent."""
    try:
        config_yaml = folder.config.read_text()
        check(parse_yaml(config_yaml, str(folder.config)))
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
    origin: Origin,
    commit: str | None,
) -> dict[str, Path]:
    """Writes anew the files of a run that are not published as they are: name -> path."""
    for name in (name for name in paths if name.startswith(f"{REPOSITORY.figures.as_posix()}/")):
        link = temporary.root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(paths[name].resolve())  # the card shows the figures that it finds beside it
    names = {"base_model": base_model, "repo_id": repo_id, "commit": commit}
    write_card(report, config_yaml, temporary.root, origin=origin, **names)
    temporary.details.mkdir()
    temporary.report.write_text(public_report(report))
    temporary.config.write_text(public_config(config_yaml))
    written = {README: temporary.card, REPORT: temporary.report, CONFIG: temporary.config}
    everything = {name: path for name, path in (paths | written).items() if name != CHECKSUMS}
    digests = {name: sha256(path) for name, path in everything.items()}
    temporary.checksums.write_text(checksums.as_text(digests))
    results = {}  # hidden, and so in no list of checksums
    if write_eval_results(report, check(parse_yaml(config_yaml, CONFIG)), temporary, repo_id):
        results = {REPOSITORY.eval_results.as_posix(): temporary.eval_results}
    return written | results | {CHECKSUMS: temporary.checksums}


def _commit(
    api: HfApi, repo_id: str, revision: str | None, message: str, files: dict[str, Path], whole: bool = True
) -> CommitInfo:
    """Adds files, and removes weights that are not among them where they are a whole checkpoint, in one commit."""
    with _one_line_errors(api, repo_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")  # arms.parquet
        stale = [
            CommitOperationDelete(name)
            for name in api.list_repo_files(repo_id, revision=revision)
            if whole and WEIGHTS.fullmatch(name) and name not in files
        ]
        added = [CommitOperationAdd(name, path) for name, path in files.items()]
        # Not upload_folder: with Xet it makes several commits.
        return api.create_commit(repo_id, [*stale, *added], commit_message=message, revision=revision)


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

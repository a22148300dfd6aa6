"""A small Hub: it speaks the upload and download protocol over HTTP and keeps what it received in memory.

What it checks, it checks as the Hub does: the token, sha256 and size of large files, the metadata of model cards, and
that a commit names only objects that were uploaded.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".safetensors", ".parquet", ".bin")
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", r"/api/repos/create", "create_repo"),
    ("POST", r"/api/validate-yaml", "validate_card"),
    ("POST", rf"/api/models/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api/models/{NAME}/branch/(?P<revision>[^/]+)", "branch"),
    ("GET", rf"/api/models/{NAME}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?", "tree"),
    ("GET", rf"/api/models/{NAME}(/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "large_batch"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/verify", "large_verify"),
    ("PUT", r"/storage/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "large_put"),
    ("POST", r"/storage/(?P<oid>[0-9a-f]{64})", "large_complete"),
    ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", "large_get"),
    ("GET", rf"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
WRITES = {"create_repo", "preupload", "commit", "branch", "large_batch", "large_verify"}


@dataclass
class Answer:
    """One HTTP answer; a dict or a list goes out as JSON."""

    content: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer with an error in it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        headers = {"X-Error-Message": " ".join(message.split())} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message}, status, headers)


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]
    operations: list[dict[str, Any]]


@dataclass
class Repo:
    """A model repository; branches are lists of commits."""

    name: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        """The newest commit of a branch, or the commit of that id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        for commit in (commit for branch in self.branches.values() for commit in branch):
            if commit.oid == revision:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add(self, branch: str, message: str, files: dict[str, bytes], operations: list[dict[str, Any]]) -> Commit:
        """A new commit at the end of a branch."""
        count = sum(len(commits) for commits in self.branches.values())
        commit = Commit(hashlib.sha1(f"{count}{branch}{message}".encode()).hexdigest(), message, files, operations)
        self.branches.setdefault(branch, []).append(commit)
        return commit


@dataclass
class Fault:
    """What goes wrong: an error status, or 0 to drop the connection, the next `times` times a request matches."""

    pattern: str
    status: int
    times: int
    message: str


class HubServer:
    """The Hub in this process; `url` is its address.

    Attributes:
        users: token -> (user, whether it may write).
        repos: owner/name -> repository.
        objects: sha256 -> content of large files.
        chunk_size: Large files above it are uploaded in parts; None for never.
        requests: (method, path, headers) of everything that was asked.
    """

    def __init__(self, users: dict[str, tuple[str, bool]]) -> None:
        self.users = users
        self.chunk_size: int | None = None
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        self._start(0)

    def _start(self, port: int) -> None:
        handler = type("Handler", (Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.storage = f"http://localhost:{self.http.server_port}/storage"  # another host, as the Hub's storage is
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """Stops listening and closes what is open."""
        self.http.shutdown()
        self.http.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Nobody listens at the address meanwhile."""
        port = self.http.server_port
        self.close()
        yield
        self._start(port)

    @contextmanager
    def failing(self, pattern: str, status: int = 0, times: int = 10**6, message: str = "asked for") -> Iterator[None]:
        """Requests whose `METHOD /path` matches get an error status, or with 0 no answer at all."""
        fault = Fault(pattern, status, times, message)
        self.faults.append(fault)
        yield
        self.faults.remove(fault)

    def add_repo(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        """A repository that is there already."""
        repo = self.repos[name] = Repo(name, private)
        repo.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n", **files}, [])
        return repo

    def rebuild(self, name: str, folder: Path, revision: str = "main") -> Path:
        """Writes the files of a repository into a folder."""
        for path, content in self.repos[name].at(revision).files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return folder

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer | None:
        """The answer to one request; None drops the connection."""
        path = urlsplit(target).path
        with self.lock:
            self.requests.append((method, path, headers))
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, f"{method} {path}"):
                    fault.times -= 1
                    return Refusal(fault.status, fault.message).answer if fault.status else None
            try:
                return self._route(method, path, headers, body)
            except Refusal as refusal:
                return refusal.answer

    def _route(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        for verb, pattern, name in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == ("GET" if method == "HEAD" else method):
                found = {key: value for key, value in match.groupdict().items() if value is not None}
                parts: dict[str, Any] = {key: unquote(value) for key, value in found.items()}
                if name.startswith("large_") and path.startswith("/storage"):
                    return getattr(self, name)(body=body, **parts)  # signed addresses: no token
                user = self._user(headers, parts.get("repo"), writes=name in WRITES)
                if name == "create_repo":
                    return self.create_repo(user, json.loads(body))
                if "repo" in parts:
                    parts["repo"] = self._repo(parts["repo"], user)
                return getattr(self, name)(body=body, **parts)
        raise Refusal(404, f"no such address: {method} {path}")

    def _user(self, headers: dict[str, str], repo: str | None, writes: bool) -> str | None:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if not token and not writes:
            return None
        if token not in self.users:
            raise Refusal(401, "Invalid credentials in Authorization header")
        user, may_write = self.users[token]
        if writes and (not may_write or (repo and repo.split("/")[0] != user)):
            raise Refusal(403, f"you must use a write token of the right owner, {user} is not")
        return user

    def _repo(self, name: str, user: str | None) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and name.split("/")[0] != user):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def create_repo(self, user: str | None, asked: dict[str, Any]) -> Answer:
        """Makes a repository under the user, or says that it is there."""
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if owner != user:
            raise Refusal(403, f"you do not have the rights to create a model under the namespace {owner}")
        if name in self.repos:
            return Answer({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))  # newer, older clients
        self.add_repo(name, {}, private=private)
        return Answer({"url": f"{self.url}/{name}", "name": name, "id": name})

    def validate_card(self, body: bytes) -> Answer:
        """Checks the metadata of a model card."""
        content = json.loads(body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
        texts, lists = ("license", "pipeline_tag", "library_name", "base_model"), ("tags", "datasets", "metrics")
        wrong = [key for key in texts if not isinstance(data.get(key, ""), str)]
        wrong += [key for key in lists if not isinstance(data.get(key, []), list)]
        wrong += ["license"] if re.search(r"[^a-z0-9.-]", data.get("license", "")) else []
        errors = [{"message": f'"{key}" is not valid'} for key in wrong]
        return Answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: Repo, revision: str, body: bytes) -> Answer:
        """Says which files are large, and what is there of them."""
        there = repo.at(revision).files
        return Answer(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": _mode(file["path"]),
                        "shouldIgnore": False,
                        "oid": _oid(file["path"], there[file["path"]]) if file["path"] in there else None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        )

    def branch(self, repo: Repo, revision: str, body: bytes) -> Answer:
        """Makes a branch from main."""
        if revision in repo.branches:
            raise Refusal(409, f"Reference refs/heads/{revision} exists")
        repo.branches[revision] = [repo.at("main")]
        return Answer({})

    def commit(self, repo: Repo, revision: str, body: bytes) -> Answer:
        """Applies the operations of one commit, all or none."""
        header, *operations = map(json.loads, body.splitlines())
        files = dict(repo.at(revision).files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.objects or len(self.objects[value["oid"]]) != value["size"]:
                    raise Refusal(400, f"{value['path']} points to an object that was not uploaded")
                files[value["path"]] = self.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"unknown operation {operation['key']}")
        made = repo.add(revision, header["value"]["summary"], files, operations)
        url = f"{self.url}/{repo.name}/commit/{made.oid}"
        return Answer({"success": True, "commitOid": made.oid, "commitUrl": url})

    def large_batch(self, repo: Repo, body: bytes) -> Answer:
        """Where the large files that are missing go."""
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            actions: dict[str, Any] = {
                "upload": {"href": f"{self.storage}/{oid}"},
                "verify": {"href": f"{self.url}/{repo.name}.git/info/lfs/objects/verify"},
            }
            if self.chunk_size and size > self.chunk_size:
                numbers = range(1, -(-size // self.chunk_size) + 1)
                parts = {f"{number:05}": f"{self.storage}/{oid}/{number}" for number in numbers}
                actions["upload"]["header"] = {"chunk_size": str(self.chunk_size), **parts}
            objects.append({"oid": oid, "size": size} | ({} if oid in self.objects else {"actions": actions}))
        return Answer({"transfer": "basic", "objects": objects})

    def large_put(self, oid: str, body: bytes, part: str | None = None) -> Answer:
        """A large file, or a part of one."""
        if part is not None:
            self.parts[oid, int(part)] = body
            return Answer(headers={"ETag": hashlib.md5(body).hexdigest()})
        return self._store(oid, body)

    def large_complete(self, oid: str, body: bytes) -> Answer:
        """Puts the parts of a large file together."""
        contents = []
        for part in json.loads(body)["parts"]:
            contents.append(self.parts[oid, part["partNumber"]])
            if hashlib.md5(contents[-1]).hexdigest() != part["etag"]:
                raise Refusal(400, f"part {part['partNumber']} has another etag")
        return self._store(oid, b"".join(contents))

    def _store(self, oid: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content has another sha256")
        self.objects[oid] = content
        return Answer()

    def large_verify(self, repo: Repo, body: bytes) -> Answer:
        """Whether a large file has arrived whole."""
        asked = json.loads(body)
        if len(self.objects.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, "object not found")
        return Answer({})

    def large_get(self, oid: str, body: bytes) -> Answer:
        """The content of a large file."""
        if oid not in self.objects:
            raise Refusal(404, "object not found")
        return Answer(self.objects[oid], headers={"ETag": f'"{oid}"'})

    def info(self, repo: Repo, body: bytes, revision: str = "main") -> Answer:
        """About a repository."""
        commit = repo.at(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return Answer({"id": repo.name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []})

    def tree(self, repo: Repo, revision: str, body: bytes, folder: str = "/") -> Answer:
        """The files below a folder."""
        prefix = f"{folder.strip('/')}/".lstrip("/")
        files = repo.at(revision).files
        found = [path for path in files if path.startswith(prefix)]
        if prefix and not found:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return Answer(
            [
                {"type": "file", "path": path, "size": len(files[path]), "oid": _oid(path, files[path])}
                for path in found
            ]
        )

    def resolve(self, repo: Repo, revision: str, path: str, body: bytes) -> Answer:
        """The content of a file; large ones lie elsewhere."""
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            refusal = Refusal(404, "Entry not found", "EntryNotFound").answer
            return Answer(refusal.content, 404, refusal.headers | headers)
        content = commit.files[path]
        oid = _oid(path, content)
        if _mode(path) == "lfs":
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return Answer(status=302, headers=headers | {"Location": f"{self.storage}/{oid}"})
        return Answer(content, headers=headers | {"ETag": f'"{oid}"'})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LARGE) else "regular"


def _oid(path: str, content: bytes) -> str:
    if _mode(path) == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Reads requests, writes answers."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle_request(self) -> None:
        """One request."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.hub.answer(self.command, self.path, headers, self._body())
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        is_json = isinstance(answer.content, (dict, list))
        body = json.dumps(answer.content).encode() if is_json else answer.content
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if is_json:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing goes to the terminal."""

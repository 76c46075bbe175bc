"""A local server that speaks the part of the Hugging Face Hub's API that publishing needs; it holds all in memory."""

import base64
import hashlib
import http.server
import json
import threading
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer(http.server.ThreadingHTTPServer):
    """Repositories with branches, tags and content-addressed large files.

    Attributes:
        branches: Name of a branch or tag -> commit.
        commits: Commit -> path -> content of the file.
        large: SHA-256 -> content of each uploaded large file.
        log: What was asked, as method and path, in order.
        headers: Authorization headers that were seen.
    """

    def __init__(self) -> None:
        self.repository: str | None = None
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[str] = []
        self.tokens: set[str] = set()
        self.die_at: str | None = None  # the request with this word in its path is answered with an error
        self.created: dict[str, Any] = {}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Make a commit the head of a branch."""
        names = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())})
        oid = hashlib.sha1(names.encode() + str(len(self.commits)).encode()).hexdigest()
        self.commits[oid], self.branches[branch] = dict(files), oid
        return oid

    def files(self, revision: str) -> dict[str, bytes]:
        """Files of a branch, tag or commit."""
        return self.commits[self.branches.get(revision) or self.tags.get(revision) or revision]


def is_large(path: str) -> bool:
    """Whether a file is stored by content, as the Hub's default rules have it for weights."""
    return path.endswith((".safetensors", ".onnx"))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.log.append(f"{method} {path}")
        if self.headers.get("Authorization"):
            self.server.tokens.add(self.headers["Authorization"])
        if self.server.die_at and self.server.die_at in path:
            status, content = 403, {"error": "quota"}
        else:
            status, content = self._route(method, path, body)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound" if self.server.repository is None else "RevisionNotFound")
        self.end_headers()
        self.wfile.write(text)

    def _route(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        hub = self.server
        if path == "/api/repos/create":
            if hub.repository is not None:
                return 409, {"error": "exists", "url": f"{hub.url}/{hub.repository}"}
            hub.created = json.loads(body)
            hub.repository = f"{hub.created['organization']}/{hub.created['name']}"
            hub.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            return 200, {"url": f"{hub.url}/{hub.repository}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/blob/"):
            if hashlib.sha256(body).hexdigest() != path.rpartition("/")[2]:
                return 400, {"error": "another content"}
            hub.large[path.rpartition("/")[2]] = body
            return 200, {}
        if hub.repository is None:
            return 404, {"error": "Repository not found"}
        if path == f"/{hub.repository}.git/info/lfs/objects/batch":
            return 200, {"transfer": "basic", "objects": [self._action(one) for one in json.loads(body)["objects"]]}
        kind, _, rest = path.removeprefix(f"/api/models/{hub.repository}").lstrip("/").partition("/")
        return self._repository(method, kind, rest, body)

    def _action(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.server.url}/blob/{one['oid']}", "header": {}}
        return one if one["oid"] in self.server.large else one | {"actions": {"upload": upload}}

    def _repository(self, method: str, kind: str, rest: str, body: bytes) -> tuple[int, Any]:
        hub = self.server
        if kind == "refs":
            refs = [
                [{"name": n, "ref": f"refs/{p}/{n}", "targetCommit": c} for n, c in group.items()]
                for p, group in (("heads", hub.branches), ("tags", hub.tags))
            ]
            return 200, {"branches": refs[0], "tags": refs[1], "converts": []}
        if kind == "branch" and method == "DELETE":
            return (200, {}) if hub.branches.pop(rest, None) else (404, {"error": "no branch"})
        if kind == "branch":
            if rest in hub.branches:
                return 409, {"error": "exists"}
            hub.branches[rest] = hub.branches["main"]
            return 200, {}
        if kind == "tag":
            tag = json.loads(body)["tag"]
            if tag in hub.tags:
                return 409, {"error": "exists"}
            hub.tags[tag] = hub.branches[rest]
            return 200, {}
        if kind == "preupload":
            present = hub.files(rest)
            return 200, {"files": [_mode(one, present) for one in json.loads(body)["files"]]}
        if kind == "tree":
            revision = rest.partition("/")[0]
            return 200, [_entry(path, content) for path, content in hub.files(revision).items()]
        if kind == "commit":
            return self._commit(rest, [json.loads(line) for line in body.splitlines()])
        if kind in ("", "revision"):
            sha = hub.branches.get(rest or "main")
            return 200, {"id": hub.repository, "sha": sha, "siblings": []}
        return 404, {"error": f"{method} {kind}"}

    def _commit(self, branch: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        hub = self.server
        files = dict(hub.files(branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in hub.large:
                    return 400, {"error": "the content was not uploaded"}
                files[value["path"]] = hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = hub.commit(branch, files)
        return 200, {"commitUrl": f"{hub.url}/{hub.repository}/commit/{oid}", "commitOid": oid}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _mode(one: dict[str, Any], present: dict[str, bytes]) -> dict[str, Any]:
    path = one["path"]
    oid = None
    if path in present:
        oid = hashlib.sha256(present[path]).hexdigest() if is_large(path) else _blob(present[path])
    return {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": oid}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if is_large(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry

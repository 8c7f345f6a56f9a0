"""Local servers that speak the protocols of the Hugging Face hub and of ModelScope: they serve a folder, and take one.

They can be told to misbehave: answer 503 a few times, drop a connection half-way, deny a repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Hub:
    """What is served, how it misbehaves, and what was asked for."""

    repository: str
    folder: Path
    busy: int = 0  # so many requests are answered with 503
    cut: str = ""  # the first download of this file ends half-way
    gated: bool = False
    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range header
    private: bool | None = None  # of the repository that is pushed to; None: there is none yet
    blobs: dict[str, bytes] = field(default_factory=dict)  # large files, by their SHA-256
    pushed: dict[str, bytes] = field(default_factory=dict)  # files of the commit, by path

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def downloads(self, name: str) -> list[str]:
        """The Range headers of the downloads of a file, in order."""
        return [where for method, path, where in self.requests if method == "GET" and path.endswith(name)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, unquote(self.path), self.headers.get("Range", "")))
        if self.hub.busy:
            self.hub.busy -= 1
            return self._json(503, {"error": "busy"})
        return self._route(urlsplit(self.path))

    def _route(self, url: Any) -> None:
        raise NotImplementedError

    def _json(self, status: int, values: Any, **headers: str) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, name: str, **headers: str) -> None:
        file = self.hub.folder / name
        if not file.is_file():
            return self._json(404, {"error": "no such file"}, X_Error_Code="EntryNotFound")
        data = file.read_bytes()
        start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        headers |= {"Content-Length": str(len(data) - start), "Accept-Ranges": "bytes", "ETag": f'"{_digest(file)}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if name == self.hub.cut:
            self.hub.cut = ""
            self.wfile.write(data[start : len(data) // 2])
            self.wfile.flush()
            self.close_connection = True
            return None
        self.wfile.write(data[start:])
        return None


class _HuggingFace(_Handler):
    def _route(self, url: Any) -> None:
        path = unquote(url.path).strip("/")
        name = self.hub.repository
        if name not in path:
            return self._json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if self.hub.gated:
            return self._json(403, {"error": "Access is restricted"}, X_Error_Code="GatedRepo")
        if path.startswith(f"api/models/{name}/tree/"):
            return self._json(200, [_hub_entry(self.hub.folder, file) for file in self.hub.files()])
        if path in (f"api/models/{name}", *(f"api/models/{name}/revision/{rev}" for rev in ("main", COMMIT))):
            names = [str(file.relative_to(self.hub.folder)) for file in self.hub.files()]
            return self._json(200, {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in names]})
        if path.startswith(f"{name}/resolve/"):
            return self._file(path.removeprefix(f"{name}/resolve/").split("/", 1)[1], X_Repo_Commit=COMMIT)
        return self._json(404, {"error": path}, X_Error_Code="EntryNotFound")


class _ModelScope(_Handler):
    def _route(self, url: Any) -> None:
        path, query = unquote(url.path), parse_qs(url.query)
        base = f"/api/v1/models/{self.hub.repository}"
        if not path.startswith(base):
            return self._json(404, {"Code": 10010205001, "Message": "Model does not exist."})
        if self.hub.gated:
            return self._json(403, {"Code": 403, "Message": "no permission"})
        if path == f"{base}/repo/files":
            return self._json(
                200,
                {"Code": 200, "Data": {"Files": [_scope_entry(self.hub.folder, file) for file in self.hub.files()]}},
            )
        if path == f"{base}/repo":
            return self._file(query["FilePath"][0])
        return self._json(200, {"Code": 200, "Data": {"Name": self.hub.repository}})


class _HuggingFaceDatasets(_HuggingFace):
    def _route(self, url: Any) -> None:
        path = url.path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        super()._route(url._replace(path=path))


class _ManyDatasets(_HuggingFaceDatasets):
    """Serves each folder `owner/name` of the hub's folder as a data set of that name; `gated` ones are refused."""

    def _route(self, url: Any) -> None:
        whole = self.hub
        names = [f"{path.parent.name}/{path.name}" for path in whole.folder.glob("*/*") if path.is_dir()]
        name = next((name for name in names if name in unquote(url.path)), "")
        self.hub = Hub(name or "no/such", whole.folder / name, gated=name == whole.repository)
        super()._route(url)
        self.hub = whole


class _ModelScopeDatasets(_Handler):
    def _route(self, url: Any) -> None:
        path, query = unquote(url.path), parse_qs(url.query)
        base = f"/api/v1/datasets/{self.hub.repository}"
        if path == f"{base}/repo/tree":
            files = [_scope_entry(self.hub.folder, file) for file in self.hub.files()]
            return self._json(200, {"Code": 200, "Data": {"Files": files, "TotalCount": len(files)}})
        if path == f"{base}/repo":
            return self._file(query["FilePath"][0])
        return self._json(404, {"Code": 10010205001, "Message": "Dataset does not exist."})


class _Push(_Handler):
    """Takes a repository: it is made, large files are put to a place of their own, and a commit names them all."""

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _route(self, url: Any) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(url.path)
        if path.startswith("/blobs/"):  # the address itself is the permission
            assert hashlib.sha256(self.body).hexdigest() == path.removeprefix("/blobs/")
            self.hub.blobs[path.removeprefix("/blobs/")] = self.body
            return self._json(200, {})
        if self.headers.get("Authorization") != "Bearer secret":
            return self._refuse()
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(self.body)["objects"]
            return self._json(200, self._batch([{**each, "actions": self._upload(each["oid"])} for each in wanted]))
        return self._take(path)

    def _upload(self, oid: str) -> dict[str, Any]:
        return {} if oid in self.hub.blobs else {"upload": {"href": f"{self.hub.url}/blobs/{oid}"}}

    def _batch(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        return {"transfer": "basic", "objects": objects}

    def _refuse(self) -> None:
        return self._json(401, {"error": "Invalid credentials"})

    def _take(self, path: str) -> None:
        raise NotImplementedError


class _HuggingFacePush(_Push):
    def _take(self, path: str) -> None:
        base = f"/api/models/{self.hub.repository}"
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self.hub.private = json.loads(self.body)["visibility"] == "private"
            return self._json(200, {"url": f"{self.hub.url}/{self.hub.repository}"})
        if path == base and self.hub.private is None:
            return self._json(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if path in (base, f"{base}/revision/main"):
            return self._json(
                200, {"id": self.hub.repository, "sha": COMMIT, "private": self.hub.private, "siblings": []}
            )
        if path == f"{base}/preupload/main":
            files = [each["path"] for each in json.loads(self.body)["files"]]
            modes = {True: "lfs", False: "regular"}
            found = [
                {"path": file, "uploadMode": modes[file.endswith(".safetensors")], "shouldIgnore": False}
                for file in files
            ]
            return self._json(200, {"files": found})
        if path == f"{base}/commit/main":
            for line in map(json.loads, self.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.hub.pushed[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.hub.pushed[value["path"]] = self.hub.blobs[value["oid"]]
            return self._json(
                200, {"commitUrl": f"{self.hub.url}/{self.hub.repository}/commit/{COMMIT}", "commitOid": COMMIT}
            )
        return self._json(404, {"error": path}, X_Error_Code="EntryNotFound")


class _ModelScopePush(_Push):
    def _batch(self, objects: list[dict[str, Any]]) -> dict[str, Any]:
        return {"Code": 200, "Data": {"objects": objects}}

    def _take(self, path: str) -> None:
        name = self.hub.repository
        if path == "/api/v1/models" and self.hub.private is not None:  # the client asks again before it uploads
            return self._json(409, {"Code": 10010101001, "Message": "model already exists"})
        if path == "/api/v1/models":
            self.hub.private = int(json.loads(self.body)["Visibility"]) == 1
            return self._json(200, {"Code": 200, "Data": {"Name": name}})
        if path == f"/api/v1/models/{name}" and self.hub.private is None:
            return self._json(404, {"Code": 10010205001, "Message": "Model does not exist."})
        if path == f"/api/v1/models/{name}":
            owner, own = name.split("/")
            told = {"Path": owner, "Name": own, "Visibility": 1 if self.hub.private else 5}
            return self._json(200, {"Code": 200, "Data": told})
        if path.startswith(f"/api/v1/repos/models/{name}/commit/"):
            for action in json.loads(self.body)["actions"]:
                inline = action["type"] == "normal"
                data = base64.b64decode(action["content"]) if inline else self.hub.blobs[action["sha256"]]
                self.hub.pushed[action["path"]] = data
            return self._json(200, {"Code": 200, "Success": True, "Data": {"CommitId": COMMIT}})
        if path == f"/api/v1/models/{name}/repo/files":
            return self._json(200, {"Code": 200, "Data": {"Files": []}})
        return self._json(404, {"Code": 404, "Message": path})


_HANDLERS = {
    "hub push": _HuggingFacePush,
    "modelscope push": _ModelScopePush,
    "hub": _HuggingFace,
    "modelscope": _ModelScope,
    "hub datasets": _HuggingFaceDatasets,
    "many hub datasets": _ManyDatasets,
    "modelscope datasets": _ModelScopeDatasets,
}


def _hub_entry(folder: Path, file: Path) -> dict[str, Any]:
    name = str(file.relative_to(folder))
    return {"type": "file", "oid": _digest(file)[:40], "size": file.stat().st_size, "path": name}


def _scope_entry(folder: Path, file: Path) -> dict[str, Any]:
    name = str(file.relative_to(folder))
    return {"Type": "blob", "Path": name, "Name": file.name, "Size": file.stat().st_size, "Sha256": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def serve(kind: str, hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free local port until the block ends; `kind` is a key of `_HANDLERS`."""
    handler = type("Handler", (_HANDLERS[kind],), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

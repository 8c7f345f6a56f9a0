"""Local servers that speak the download protocols of the Hugging Face hub and of ModelScope, and serve one folder.

They can be told to misbehave: answer 503 a few times, drop a connection half-way, deny a repository.
"""

from __future__ import annotations

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
        if self.command == "GET":
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


_HANDLERS = {
    "hub": _HuggingFace,
    "modelscope": _ModelScope,
    "hub datasets": _HuggingFaceDatasets,
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

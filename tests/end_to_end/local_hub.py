"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that loading a model needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors",)  # stored by digest, as the hub's LFS files are


@contextmanager
def serve(models: dict[str, Path], requests: list[str]) -> Iterator[str]:
    """Serve directories as models; yields the endpoint. Each request's method and path are noted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.respond(head=True)

        def do_GET(self) -> None:
            self.respond(head=False)

        def respond(self, *, head: bool) -> None:
            path = unquote(urlparse(self.path).path)
            requests.append(f"{self.command} {path}")
            for name, directory in models.items():
                if path.startswith(f"/api/models/{name}"):
                    rest = path.removeprefix(f"/api/models/{name}").strip("/")
                    if rest.startswith("tree/"):
                        return self.send_body(json.dumps(tree(directory)).encode(), head)
                    if rest in {"", f"revision/{COMMIT}", "revision/main"}:
                        return self.send_body(json.dumps(info(name, directory)).encode(), head)
                if path.startswith(f"/{name}/resolve/"):
                    revision, _, file = path.removeprefix(f"/{name}/resolve/").partition("/")
                    if revision in {COMMIT, "main"} and (directory / file).is_file():
                        return self.send_file(directory / file, head)
                    return self.send_body(b"{}", head, 404, {"X-Error-Code": "EntryNotFound" if revision in {COMMIT, "main"} else "RevisionNotFound"})
            return self.send_body(b'{"error": "not found"}', head, 404, {"X-Error-Code": "RepoNotFound"})

        def send_file(self, path: Path, head: bool) -> None:
            data = path.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(path)}"', "Accept-Ranges": "bytes"}
            status = 200
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                end = int(last) if last else len(data) - 1
                headers["Content-Range"] = f"bytes {first}-{min(end, len(data) - 1)}/{len(data)}"
                data, status = data[int(first):end + 1], 206
            self.send_body(data, head, status, headers)

        def send_body(self, body: bytes, head: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not head:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def digest(path: Path) -> str:
    """SHA-256 of a large file, git's blob id of another."""
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest() if path.suffix in LARGE else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


def info(name: str, directory: Path) -> dict:
    siblings = []
    for path in files(directory):
        entry: dict = {"rfilename": path.relative_to(directory).as_posix(), "size": path.stat().st_size, "blobId": digest(path)[:40]}
        if path.suffix in LARGE:
            entry["lfs"] = {"sha256": digest(path), "size": path.stat().st_size, "pointerSize": 134}
        siblings.append(entry)
    return {"_id": "0" * 24, "id": name, "modelId": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": [], "siblings": siblings, "lastModified": "2026-01-01T00:00:00.000Z"}


def tree(directory: Path) -> list[dict]:
    found = []
    for path in files(directory):
        entry: dict = {"type": "file", "path": path.relative_to(directory).as_posix(), "size": path.stat().st_size, "oid": digest(path)[:40]}
        if path.suffix in LARGE:
            entry["lfs"] = {"oid": digest(path), "size": path.stat().st_size, "pointerSize": 134}
        found.append(entry)
    return found

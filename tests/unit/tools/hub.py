"""A stand-in for the hub on loopback: repositories of small files, some with a fault."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar

COMMIT = "5d" * 20
FILES = {
    ".gitattributes": b"* text",
    "LICENSE": b"the whole licence",
    "README.md": b"# a model",
    "config.json": b'{"a": 1}',
    "modeling.py": b"raise SystemExit",
    "model.safetensors.index.json": b"{}",
    "model-0001-of-0002.safetensors": bytes(range(256)) * 400,
    "model-0002-of-0002.safetensors": bytes(reversed(range(256))) * 400,
    "tokenizer.json": b"[]",
    "assets/banner.png": b"\x89PNG",
}
SECOND = "model-0002-of-0002.safetensors"
# The library writes blocks of 10 MiB: a file that is cut off in the middle has to have two.
BLOCK_BYTES = 10 * 2**20
LARGE = FILES | {SECOND: bytes(reversed(range(256))) * (11 * 2**13)}


def files_of(name: str) -> dict[str, bytes]:
    """Return the files of a repository of the stand-in."""
    if name == "other":
        return {"README.md": b"a data set"}
    return LARGE if name in ("cut", "rangeless") else FILES


class Hub(BaseHTTPRequestHandler):
    """Serves the files above under any name; what a name says goes wrong, does."""

    protocol_version = "HTTP/1.1"
    endpoint: str
    gets: list[tuple[str, str | None]]  # files and ranges that were transferred
    is_cutting = True
    tokens: ClassVar[dict[str, set[str | None]]] = {"hub": set(), "cdn": set()}

    def do_GET(self) -> None:
        if found := re.match(r"/api/models/own/([\w-]+)/revision/(\w+)", self.path):
            self._describe(*found.groups())
        elif found := re.match(rf"/own/([\w-]+)/resolve/{COMMIT}/(.+)", self.path):
            self._resolve(*found.groups())
        elif found := re.match(r"/cdn/([\w-]+)/(.+)", self.path):
            type(self).tokens["cdn"].add(self.headers.get("Authorization"))
            self._send(*found.groups())
        else:
            self._answer(404, b"no such path")

    def _describe(self, name: str, revision: str) -> None:
        if name == "away":
            self.close_connection = True
        elif name == "gated":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name == "private":
            self._answer(401, b"{}")
        elif name == "broken":
            self._answer(500, b"{}")
        elif name == "nothing":
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision != "main":
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [describe(*item) for item in files_of(name).items()]
            info = {"id": f"own/{name}", "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(info).encode())

    def _resolve(self, name: str, file: str) -> None:
        """Send a file, or where its bytes are: those of LFS come from another host."""
        type(self).tokens["hub"].add(self.headers.get("Authorization"))
        if file.endswith(".safetensors"):
            elsewhere = self.endpoint.replace("127.0.0.1", "localhost")
            self._answer(302, b"", {"Location": f"{elsewhere}/cdn/{name}/{file}"})
        else:
            self._send(name, file)

    def _send(self, name: str, file: str) -> None:
        wanted = self.headers.get("Range")
        type(self).gets.append((file, wanted))
        content = files_of(name)[file]
        if name == "wrong" and file == SECOND:
            content = content[::-1]
        start = 0
        if wanted and name != "rangeless":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = content[start:]
        if name in ("cut", "rangeless") and file == SECOND and type(self).is_cutting:
            if wanted:  # the retry of the library
                self._answer(500, b"{}")
                return
            some = body[: BLOCK_BYTES + 1000]
            self._answer(200, some, {"Content-Length": str(len(body))})
            self.close_connection = True
            return
        self._answer(206 if start else 200, body)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def describe(name: str, content: bytes) -> dict[str, Any]:
    """Return what the hub says of a file: LFS has weights by SHA-256, git the rest by SHA-1."""
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    described: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 135}
    return described

"""The few endpoints of the Hugging Face hub that a download asks, served on this machine."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

COMMIT = "0123456789abcdef" * 2 + "01234567"
# Kept as Git LFS objects there, and so reached by a redirection to another address.
_LARGE = (".safetensors", ".bin", ".parquet")


@dataclasses.dataclass
class Hub:
    """Repositories ("owner/name", "datasets/owner/name"), their files, and what was asked for.

    Of gated ones everyone may list the files, and nobody may read them.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: tuple[str, ...] = ()
    url: str = ""
    asked: list[str] = dataclasses.field(default_factory=list)

    def fetched(self) -> list[str]:
        """The files whose content was sent, by repository and name, in no order."""
        return sorted(line.removeprefix("GET ") for line in self.asked if line.startswith("GET "))


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serves the hub while the block runs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            """Says nothing."""

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()

        def answer(self):
            path = self.path.split("?")[0].lstrip("/")
            if path.startswith("objects/"):
                _, repository, name = path.split("//")
                hub.asked.append(f"{self.command} {repository}/{name}")
                return self.send(200, hub.repositories[repository][name])
            listing, repository, revision, name = _parts(path)
            if repository not in hub.repositories:
                return self.refuse("RepoNotFound", 404)
            if revision not in (COMMIT, "main"):
                return self.refuse("RevisionNotFound", 404)
            found = hub.repositories[repository]
            if listing:
                return self.send(200, json.dumps(_listing(listing, found)).encode())
            if repository in hub.gated:
                return self.refuse("GatedRepo", 403)
            if name not in found:
                return self.refuse("EntryNotFound", 404)
            headers = {"X-Repo-Commit": COMMIT}
            if name.endswith(_LARGE):
                headers |= {
                    "X-Linked-ETag": f'"{hashlib.sha256(found[name]).hexdigest()}"',
                    "X-Linked-Size": str(len(found[name])),
                    # Another host's name, as there; the hub's own headers are not looked for at it.
                    "Location": f"{hub.url}/objects//{repository}//{name}".replace(
                        "127.0.0.1", "localhost"
                    ),
                }
                return self.send(302, b"", headers)
            hub.asked.append(f"{self.command} {repository}/{name}")
            self.send(200, found[name], headers | {"ETag": f'"{_blob(found[name])}"'})

        def refuse(self, code, status):
            self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"no: {code}"})

        def send(self, status, body, headers=()):
            begin, end = 0, len(body)
            if (part := self.headers.get("Range", "")).startswith("bytes="):
                first, _, last = part.removeprefix("bytes=").partition("-")
                begin, end = int(first), min(len(body), int(last) + 1 if last else len(body))
                headers = dict(headers) | {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"}
                status = 206
            self.send_response(status)
            for key, value in dict(headers).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[begin:end])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _parts(path: str) -> tuple[str, str, str, str]:
    """What of a repository is asked for ("" is a file), its name, a revision, and a file's name."""
    if not path.startswith("api/"):
        repository, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        return "", repository, revision, name
    kind, owner, name, what, revision, *_ = (*path.split("/")[1:], *[""] * 5)
    repository = f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}"
    return what or "info", repository, revision or "main", ""


def _listing(what: str, found: dict[str, bytes]) -> object:
    if what == "tree":
        return [_entry(name, data) for name, data in found.items()]
    return {"id": "", "sha": COMMIT, "siblings": [{"rfilename": name} for name in found]}


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
    if name.endswith(_LARGE):
        sha = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 128}
    return entry


def _blob(data: bytes) -> str:
    """What Git calls the file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

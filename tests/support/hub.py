"""A local stand-in of the Hugging Face hub: the endpoints that its library asks, over HTTP, from a folder of models."""

import hashlib
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    """Models are folders OWNER/NAME of ``root``; the revisions are "main" and ``COMMIT``."""

    def __init__(self, root, asked, *args):
        self.root, self.asked = root, asked
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802
        self.answer(body=True)

    def do_HEAD(self):  # noqa: N802
        self.answer(body=False)

    def answer(self, body):
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            return self.about(parts[2:], body)
        owner, name, _, revision, *rest = [*parts, "", "", "", ""]
        file = self.root / owner / name / "/".join(part for part in rest if part)
        if revision not in ("main", COMMIT) or not file.is_file():
            return self.missing("RevisionNotFound" if revision not in ("main", COMMIT) else "EntryNotFound")
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        return self.send(200, data, body, headers)

    def about(self, parts, body):
        """The list of a model's files."""
        owner, name, *rest = parts
        folder = self.root / owner / name
        if not folder.is_dir():
            return self.missing("RepoNotFound")
        if name == "gated":
            return self.missing("GatedRepo", 403)
        if "revision" in rest and rest[-1] not in ("main", COMMIT):
            return self.missing("RevisionNotFound")
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        if "tree" in rest:
            found = [
                {"type": "file", "path": each, "size": (folder / each).stat().st_size, "oid": "0" * 40}
                for each in files
            ]
            return self.send(200, json.dumps(found).encode(), body, {})
        found = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [{"rfilename": each} for each in files]}
        return self.send(200, json.dumps(found).encode(), body, {})

    def missing(self, code, status=404):
        self.send(status, b"{}", True, {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status, data, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(root):
    """The address of a hub of the models in a folder, and the list of what it was asked."""
    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, root, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()

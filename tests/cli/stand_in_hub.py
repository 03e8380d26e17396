"""As much of the Hub's HTTP interface as its client speaks to push and fetch a model's files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN, COMMIT = "hf_standin", "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory; `asked` is every request in order."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.large, self.asked = {}, {}, {}, []

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def answer(self, content=b"", code=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers.setdefault("Content-Length", str(len(content)))
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def handle_any(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        body = self.body()
        if self.command in ("HEAD", "GET"):
            return self.file(path)
        if path.startswith("/objects/"):
            self.server.large[path.rsplit("/", 1)[1]] = body
            return self.answer()
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        if path.endswith("/commit/main"):
            return self.commit(path.split("/")[3:5], body)
        return self.api(path, json.loads(body))

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - http.server's names

    def api(self, path, asked):
        if path == "/api/repos/create":
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.server.private[name] = asked.get("private")
            return self.answer({"url": f"{self.server.endpoint}/{name}"})
        if "/preupload/" in path:
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in asked["files"]
            ]
            return self.answer({"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            told = [
                {**o, "actions": {"upload": {"href": f"{self.server.endpoint}/objects/{o['oid']}"}}}
                for o in asked["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": told})
        return self.answer({"error": f"nothing at {path}"}, 404)

    def commit(self, name, body):
        files = self.server.repositories["/".join(name)]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        url = f"{self.server.endpoint}/{'/'.join(name)}/commit/{COMMIT}"
        return self.answer({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    def file(self, path):
        owner, name, *rest = path.strip("/").split("/")
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None or rest[:1] != ["resolve"]:
            return self.answer(code=404, X_Error_Code="RepoNotFound")
        if rest[2] not in files:
            return self.answer(code=404, X_Error_Code="EntryNotFound")
        content = files[rest[2]]
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=COMMIT)


@contextmanager
def hub():
    """A Hub of one's own."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

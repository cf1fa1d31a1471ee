"""A web server on this machine, with or without what real ones have or lack."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class WebServer(ThreadingHTTPServer):
    """Serves a directory.

    Its attributes can be changed while it runs.
    """

    daemon_threads = True
    ranges = True
    etags = True
    listing = False
    # Answered instead of what was asked for.
    status: int | None = None
    # "user:password" that every request has to come with.
    account: str | None = None
    # A header and its value that every request has to come with.
    header: tuple[str, str] | None = None

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # clients that have read enough hang up


class Handler(SimpleHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _refused(self) -> int | None:
        server = self.server
        if server.status is not None:
            return server.status
        if server.account is not None:
            wanted = "Basic " + base64.b64encode(server.account.encode()).decode()
            if self.headers.get("Authorization") != wanted:
                return 401
        if server.header is not None and self.headers.get(server.header[0]) != server.header[1]:
            return 403
        return None

    def end_headers(self):
        if self.server.etags and self._file is not None:
            status = self._file.stat()
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def send_header(self, keyword, value):
        if keyword == "Last-Modified" and not self.server.etags:
            return
        super().send_header(keyword, value)

    def list_directory(self, path):
        if self.server.listing:
            return super().list_directory(path)
        self.send_error(404)
        return None

    def do_HEAD(self):
        self._answer(super().do_HEAD)

    def do_GET(self):
        self._answer(super().do_GET, self.headers.get("Range"))

    def _answer(self, whole, asked=None):
        self.server.requests.append((self.command, self.path))
        path = Path(self.translate_path(self.path))
        self._file = path if path.is_file() else None
        if (status := self._refused()) is not None:
            self._file = None
            self.send_error(status)
        elif asked and self.server.ranges and self._file is not None:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", asked).groups()
            content = path.read_bytes()
            start = int(first) if first else len(content) - int(last)
            end = min(int(last) + 1 if first and last else len(content), len(content))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(content[start:end])
        else:
            whole()


@contextmanager
def serving(directory: Path) -> Iterator[WebServer]:
    server = WebServer(directory)
    # Asked often whether it is to stop: that takes as long at the end of each test.
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

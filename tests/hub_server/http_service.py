"""A loopback HTTP server whose answers can be made to fail, and the answers."""

import json
import re
import socket
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_server.faults import Call


@dataclass(frozen=True)
class Request:
    """A request: `path` is still quoted, header names are in lower case."""

    method: str
    path: str
    query: dict
    headers: dict
    body: bytes

    @property
    def token(self):
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self):
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Answer:
    """An answer; `known` is False where the stand-in has no such address."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    known: bool = True


def json_answer(value, status=200, **headers):
    """Answer with JSON; underscores in header names stand for dashes."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


def refuse(status, message, code=None, **headers):
    """Answer with an error as the Hub does: in the body and, for the client's exceptions, in two headers."""
    codes = {} if code is None else {"X_Error_Code": code}
    return json_answer({"error": message}, status, X_Error_Message=message, **codes, **headers)


def content_answer(content, request, **headers):
    """Answer with a file, or with the range of it that was asked for."""
    named = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    named |= {name.replace("_", "-"): text for name, text in headers.items()}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return Answer(200, content, named)
    first, last = asked.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    end = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= end:
        return Answer(416, b"", {**named, "Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[start:end], {**named, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})


class LoopbackServer(ThreadingHTTPServer):
    """A server of one origin that can leave at once, open connections included."""

    daemon_threads = True

    def __init__(self, port, name, answer, hub):
        self.name, self.answer, self.hub = name, answer, hub
        self.connections = set()
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def get_request(self):
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Do not print it when a client closes its side first: nobody is there to answer."""

    def leave(self):
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other side closed it already
                continue


class Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a fault strike or asks the server's `answer` for the answer, and logs the call."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, parts.path, parse_qs(parts.query), headers, self._body())
        hub = self.server.hub
        fault = hub.fault_for(self.command, unquote(parts.path))
        answer = self._answer(request, fault)
        status = None if answer is None else answer.status
        known = answer is None or answer.known
        hub.calls.append(
            Call(self.server.name, self.command, unquote(parts.path), request.query, headers, status, known)
        )
        if answer is None:
            self.close_connection = True
            if fault.gone:
                hub.stop()
            return
        self._send(answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _answer(self, request, fault):
        """Return the answer, None for a connection to be dropped. An error of the stand-in is kept for the fixture."""
        if fault is not None:
            time.sleep(fault.delay)
            if fault.drop or fault.gone:
                return None
            if fault.status is not None:
                return refuse(fault.status, f"a fault that a test asked for: {fault.status}")
        try:
            with self.server.hub.lock:
                return self.server.answer(request)
        except Exception as error:
            self.server.hub.errors.append(error)
            return refuse(500, f"the stand-in failed: {error!r}")

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, answer):
        self.send_response(answer.status)
        for name, text in answer.headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, *args):
        """Say nothing on stderr: the calls are in the log."""

"""The stand-in: two origins, what they hold, the faults that were asked for, and the log."""

import threading

from hub_server import routes
from hub_server.faults import Fault
from hub_server.http_service import LoopbackServer
from hub_server.object_storage import ObjectStorage
from hub_server.repositories import Repository, StoredFile

WRITE_TOKEN, READ_TOKEN = "hf_write", "hf_read"


class HubServer:
    """A stand-in of the Hub, with its object storage, on two ports of the loopback device.

    Args:
        part_size: Bytes above which an upload to storage goes in parts of this size.
        xet_folder: Chunk store for clients that take the Xet path, None where there is none.

    Attributes:
        calls: Every call that came in, in order.
        errors: Exceptions of the stand-in itself; a test must end with none.
    """

    def __init__(self, part_size=4 << 20, xet_folder=None):
        self.part_size, self.xet_folder = part_size, xet_folder
        self.tokens = {WRITE_TOKEN: "write", READ_TOKEN: "read"}
        self.repositories, self.storage = {}, ObjectStorage()
        self.calls, self.errors, self._faults = [], [], []
        self.lock, self._servers, self._ports = threading.RLock(), [], [0, 0]

    def start(self):
        """Listen, on the same ports as before if it was stopped."""
        answers = {"hub": lambda request: routes.answer(self, request), "storage": self.storage.answer}
        with self.lock:
            self._servers = [
                LoopbackServer(port, name, answer, self)
                for port, (name, answer) in zip(self._ports, answers.items(), strict=True)
            ]
            self._ports = [server.server_port for server in self._servers]
            for server in self._servers:
                threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        """Close both ports and every open connection; what is stored stays."""
        with self.lock:  # until the last port is free: a start must not come in between
            while self._servers:
                self._servers.pop().leave()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def storage_url(self):
        return f"http://127.0.0.1:{self._ports[1]}"

    def fail(self, path, **fault):
        """Let calls fail whose path matches; see `Fault`. Returns it: its `times` tells what is left to fail."""
        self._faults.append(Fault(path, **fault))
        return self._faults[-1]

    def fault_for(self, method, path):
        """Return the first fault that strikes this call, or None."""
        with self.lock:
            return next((fault for fault in self._faults if fault.strikes(method, path)), None)

    def add(self, name, files=None, kind="models", private=False):
        """Store a repository with these files ({path: bytes}) as if somebody had pushed them."""
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        stored = {}
        for path, content in (files or {}).items():
            stored[path] = StoredFile(content, repository.keeps_as_lfs(path, len(content)))
            if stored[path].lfs:
                self.storage.objects[stored[path].sha256] = content
        if stored:
            repository.commit("main", "Add files", "", stored)
        return repository

    def files(self, name, revision="main", kind="models"):
        """Return what a revision of a repository holds: {path: content}, empty for files on the Xet path."""
        commit = self.repositories[kind, name].at(revision)
        return {path: file.content for path, file in commit.files.items()}

    def titles(self, name, revision="main", kind="models"):
        """Return the titles of the commits, the first one first."""
        return [commit.title for commit in self.repositories[kind, name].at(revision).history()][::-1]

    def called(self, path, method=None, origin=None):
        """Return the calls whose path holds the text `path`."""
        return [
            call
            for call in self.calls
            if path in call.path and method in (None, call.method) and origin in (None, call.origin)
        ]

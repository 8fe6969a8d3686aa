"""What the stand-in stores: repositories with commits, branches and tags, all in memory."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatch
from functools import cached_property

USER = "tester"
LFS_FROM = 10_000_000  # bytes; the Hub takes no larger file as a plain git blob
LFS_NAMES = ("*.bin", "*.npz", "*.parquet", "*.pt", "*.pth", "*.safetensors", "*.zip", "*tfevents*")
GIT_ATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()


@dataclass(frozen=True)
class StoredFile:
    """The content of a file in one commit, and whether it is kept in the large file storage."""

    content: bytes
    lfs: bool = False

    @property
    def size(self):
        return len(self.content)

    @cached_property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self):
        """Return what git itself keeps of a large file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n"
        return text.encode()

    @cached_property
    def blob_oid(self):
        """Return git's name of the blob: of the pointer where the file is large."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.blob_oid


@dataclass(frozen=True, eq=False)
class Commit:
    """All files after a change, and the commit before it."""

    title: str
    message: str
    files: dict[str, StoredFile]
    parent: "Commit | None"
    date: str

    @cached_property
    def oid(self):
        tree = sorted((path, file.blob_oid) for path, file in self.files.items())
        named = (self.title, self.message, self.date, self.parent and self.parent.oid, tree)
        return hashlib.sha1(repr(named).encode()).hexdigest()

    def history(self):
        """Yield this commit and all before it."""
        commit = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def last_change_of(self, path):
        """Return the newest commit in which the file became what it is here."""
        changed = self
        for commit in self.history():
            if commit.files.get(path) != self.files[path]:
                break
            changed = commit
        return changed

    def entries(self, folder="", recursive=False):
        """Return {path: file, or None for a folder} of what lies in a folder; None where there is no such folder."""
        start = f"{folder}/" if folder else ""
        found = {}
        for path, file in self.files.items():
            if not path.startswith(start):
                continue
            parts = path[len(start) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                found[start + "/".join(parts[:depth])] = None
            if recursive or len(parts) == 1:
                found[path] = file
        return dict(sorted(found.items())) if found or not folder else None


class Repository:
    """A model or a data set with its history. Starts, as on the Hub, with a commit of `.gitattributes`."""

    def __init__(self, kind, name, private=False):
        self.kind, self.name, self.private = kind, name, private
        first = {".gitattributes": StoredFile(GIT_ATTRIBUTES)}
        self.branches = {"main": Commit("initial commit", "", first, None, _now())}
        self.tags = {}
        self.created = self.branches["main"].date

    @property
    def page(self):
        """Return the path of the repository's page."""
        return f"/datasets/{self.name}" if self.kind == "datasets" else f"/{self.name}"

    def at(self, revision):
        """Return the commit that a branch, a tag or the first digits of a commit name, or None."""
        named = self.branches.get(revision) or self.tags.get(revision)
        if named is not None or len(revision) < 7:
            return named
        every = (commit for tip in (*self.branches.values(), *self.tags.values()) for commit in tip.history())
        return next((commit for commit in every if commit.oid.startswith(revision)), None)

    def commit(self, branch, title, message, changes, deleted=()):
        """Add a commit to a branch: `changes` is {path: file}, `deleted` are files, or folders that end in "/"."""
        parent = self.branches[branch]
        kept = {
            path: file
            for path, file in parent.files.items()
            if not any(path == gone or (gone.endswith("/") and path.startswith(gone)) for gone in deleted)
        }
        self.branches[branch] = Commit(title, message, {**kept, **changes}, parent, _now())
        return self.branches[branch]

    def keeps_as_lfs(self, path, size, revision="main"):
        """Whether `.gitattributes`, or its size, sends a file to the large file storage."""
        lines = self.at(revision).files.get(".gitattributes", StoredFile(b"")).content.decode().splitlines()
        names = [line.split()[0] for line in lines if "filter=lfs" in line]
        return size >= LFS_FROM or any(fnmatch(path.rsplit("/", 1)[-1], name) for name in names)


def _now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")

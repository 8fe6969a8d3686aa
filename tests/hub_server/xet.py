"""The Xet path of large files: the client writes chunks to a folder, and the hub learns from there what it holds.

The address `local://…` of a chunk store is not documented; tests that use it must be skippable.
"""

import struct
import time
from dataclasses import dataclass

from hub_server.http_service import json_answer
from hub_server.repositories import StoredFile

WORD, ENTRY, LAST = 8, 48, b"\xff" * 32
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


@dataclass(frozen=True)
class XetFile(StoredFile):
    """A file whose content only the chunk store knows."""

    lfs: bool = True
    oid: str = ""
    size: int = 0
    xet_hash: str = ""

    @property
    def sha256(self):
        return self.oid


def token(hub, request, repository, revision, tip):
    """Send the client to the folder; both libraries, of Python and of Rust, read their own form of the answer."""
    value = {"accessToken": "xet", "exp": int(time.time()) + 3600, "casUrl": f"local://{hub.xet_folder}"}
    names = {"X_Xet_Access_Token": "accessToken", "X_Xet_Token_Expiration": "exp", "X_Xet_Cas_Url": "casUrl"}
    return json_answer(value, **{header: str(value[name]) for header, name in names.items()})


def find_file(folder, oid, size):
    """Return the file of this SHA-256 as the shards of the store list it, or None."""
    shards = (path.read_bytes() for path in folder.rglob("shards/*.mdb"))
    found = next((listed[oid] for listed in map(_files_of, shards) if oid in listed), None)
    return None if found is None else XetFile(b"", oid=oid, size=size, xet_hash=found)


def _files_of(shard):
    """Return {SHA-256: Xet hash} of the files in a shard: a header, then per file a row and its rows of details."""
    place, found = ENTRY, {}
    while shard[place : place + len(LAST)] != LAST:
        flags, segments = struct.unpack_from("<II", shard, place + len(LAST))
        name, place = _hex(shard, place), place + ENTRY + ENTRY * segments * (2 if flags & HAS_VERIFICATION else 1)
        if flags & HAS_SHA256:
            found[_hex(shard, place)] = name
            place += ENTRY
    return found


def _hex(shard, place):
    """Return a hash as text: it is stored as four numbers, the low bytes first."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", shard, place))

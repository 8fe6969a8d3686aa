"""Access tokens in files: in any Unicode encoding, and inside archives."""

import bz2
import gzip
import lzma
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast


def _spread(pattern: bytes, zeros: int) -> bytes:
    """A pattern of ASCII letters with zero bytes between them, as UTF-16 and UTF-32 have them before or after each."""
    return (b"\0" * zeros).join(pattern[i : i + 1] for i in range(len(pattern)))


# Each way in which a token can begin, and the whole of it; the first alone is looked for in most of the data.
_TOKENS = [
    (begin, re.compile(begin + (b"\0" * zeros + b"[A-Za-z0-9]") * 30))
    for prefix in (b"hf_", b"api_org_")
    for zeros in (0, 1, 3)
    for begin in (_spread(prefix, zeros),)
]
_ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_BLOCK = 1 << 20
_OVERLAP = 4096
_HEADER = 512
_DEPTH = 2  # an archive, and an archive in it
_MOST = 4 << 30  # bytes unpacked from one file: what grows beyond it was made to fill a disk
_ZIP = b"PK\x03\x04"
_OTHER_ARCHIVES = {
    b"Rar!\x1a\x07": "RAR",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress",
}
_STREAMS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_Parts = Iterable[tuple[str, Callable[[], IO[bytes]]]]
# What an archive raises that is damaged, locked with a password, or none.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


class TokenSearch:
    """A search of files for access tokens.

    Args:
        own: the user's own token, which is found whatever it looks like; None: there is none.

    Attributes:
        found: names of the files that hold a token; of one in an archive `archive: file`.
        unread: names of the files, or parts of archives, that were not looked into, and why.
    """

    def __init__(self, own: str | None = None) -> None:
        self.found: list[str] = []
        self.unread: list[tuple[str, str]] = []
        self._left = _MOST
        self._own = [own.encode(encoding) for encoding in _ENCODINGS] if own else []

    def look_into(self, path: Path, name: str) -> None:
        """Search a file, and what is packed in it.

        Args:
            path: the file.
            name: what it is called in `found` and `unread`.
        """
        self._left = _MOST
        with path.open("rb") as file:
            self._search(file, name, _DEPTH)

    def _search(self, file: IO[bytes], name: str, depth: int) -> None:
        if self._holds_token(file):
            self.found.append(name)
        try:
            parts = _parts_of(file)
            if parts is not None and depth == 0:
                raise ValueError("it is an archive in an archive in an archive")
            for part, opened in parts or ():
                with opened() as packed, self._unpacked(packed) as unpacked:
                    self._search(unpacked, f"{name}: {part}", depth - 1)
        except _BROKEN as error:
            self.unread.append((name, " ".join(str(error).split()) or type(error).__name__))

    def _holds_token(self, file: IO[bytes]) -> bool:
        file.seek(0)
        rest = b""
        while block := file.read(_BLOCK):
            block = rest + block
            if any(begin in block and token.search(block) for begin, token in _TOKENS):
                return True
            if any(own in block for own in self._own):
                return True
            rest = block[-_OVERLAP:]
        return False

    @contextmanager
    def _unpacked(self, packed: IO[bytes]) -> Iterator[IO[bytes]]:
        """A part of an archive as a file of its own, which can be read more than once."""
        with tempfile.TemporaryFile() as unpacked:
            while block := packed.read(_BLOCK):
                self._left -= len(block)
                if self._left < 0:
                    raise ValueError(f"it unpacks to more than {_MOST >> 30} GiB")
                unpacked.write(block)
            yield unpacked


def _parts_of(file: IO[bytes]) -> _Parts | None:
    """The names of the files in an archive, and how each is opened; None for what is no archive."""
    file.seek(0)
    begin = file.read(_HEADER)
    file.seek(0)
    if other := _by_magic(_OTHER_ARCHIVES, begin):
        raise ValueError(f"{other} archives cannot be read")
    stream = _by_magic(_STREAMS, begin)
    if stream is not None:
        is_tar = _is_tar(stream(file).read(_HEADER))
        file.seek(0)
        return _parts_of_tar(file) if is_tar else [("its content", lambda: stream(file))]
    if _is_tar(begin):
        return _parts_of_tar(file)
    if begin.startswith(_ZIP) or zipfile.is_zipfile(file):
        return _parts_of_zip(file)
    return None


def _by_magic(table: dict[bytes, Any], begin: bytes) -> Any:
    return next((entry for magic, entry in table.items() if begin.startswith(magic)), None)


def _is_tar(begin: bytes) -> bool:
    return begin[257:262] == b"ustar"


def _parts_of_tar(file: IO[bytes]) -> _Parts:
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        for member in archive:
            if member.isfile():
                yield member.name, lambda member=member: cast(IO[bytes], archive.extractfile(member))


def _parts_of_zip(file: IO[bytes]) -> _Parts:
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.compress_type == zipfile.ZIP_STORED:
                with archive.open(member) as stored:
                    begin = stored.read(_HEADER)
                if not (_is_tar(begin) or begin.startswith((_ZIP, *_STREAMS, *_OTHER_ARCHIVES))):
                    continue  # its bytes stand in the archive as they are: gigabytes of weights are read once
            yield member.filename, lambda member=member: archive.open(member)

"""Tokens are found in every Unicode encoding, behind every letter and in archives; what is not searched is named."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from hf_amp.hub.upload import tokens
from hf_amp.hub.upload.tokens import TokenSearch

TOKEN = "hf_" + "aB3" * 12
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


def search(path, content, own=None):
    path.write_bytes(content)
    found = TokenSearch(own)
    found.look_into(path, path.name)
    return found


def zipped(compression=zipfile.ZIP_DEFLATED, **files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("folder/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(mode="w", **files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("before", ["", " ", "x", "_", "9", "ß", "\n", '"'])
def test_a_token_is_found_in_any_encoding_and_behind_any_letter(tmp_path, encoding, before):
    for token in (TOKEN, "api_org_" + "q" * 34):
        text = f"my notes {before}{token} end"
        assert search(tmp_path / "a.txt", text.encode(encoding)).found == ["a.txt"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_only_looks_a_bit_like_a_token_is_none(tmp_path, encoding):
    text = "hf_amp and hf_short123, " + "hf_" + "a" * 29 + "-b and hf-" + "a" * 40
    found = search(tmp_path / "a.txt", text.encode(encoding))
    assert (found.found, found.unread) == ([], [])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_users_own_token_is_found_whatever_it_looks_like(tmp_path, encoding):
    assert search(tmp_path / "a.txt", "a swordfish".encode(encoding), "swordfish").found == ["a.txt"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-32-be"])
def test_a_token_over_the_border_of_two_blocks_is_found(tmp_path, encoding, monkeypatch):
    token = TOKEN.encode(encoding)
    for before in range(1000, 1000 + len(token), 7):
        monkeypatch.setattr(tokens, "_BLOCK", before)
        assert search(tmp_path / "a.bin", b"\1" * 1000 + token + b"\1" * 1000).found == ["a.bin"]


TEXT = f"password = {TOKEN}".encode("utf-16")
PACKED = {
    "zip": zipped(a=b"clean", b=TEXT),
    "stored": zipped(zipfile.ZIP_STORED, b=TEXT),
    "tar": tarred(b=TEXT),
    "tar.gz": tarred("w:gz", b=TEXT),
    "tar.bz2": tarred("w:bz2", b=TEXT),
    "tar.xz": tarred("w:xz", b=TEXT),
    "gz": gzip.compress(TEXT, mtime=0),
    "bz2": bz2.compress(TEXT),
    "xz": lzma.compress(TEXT),
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_token_is_found_in_an_archive_whatever_its_name(tmp_path, kind):
    found = search(tmp_path / "data.bin", PACKED[kind])
    assert found.found
    assert all(name.startswith("data.bin") for name in found.found)
    assert found.unread == []


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("pack", [zipped, tarred, lambda **files: tarred("w:gz", **files)])
def test_and_in_an_archive_in_an_archive(tmp_path, kind, pack):
    found = search(tmp_path / "data.bin", pack(inner=PACKED[kind]))
    assert any("inner" in name or kind in ("stored", "tar") for name in found.found)
    assert found.unread == []


def test_an_archive_three_deep_is_named(tmp_path):
    deep = zipped(two=zipped(three=zipped(four=TEXT)), clean=b"")
    found = search(tmp_path / "data.zip", deep)
    assert found.found == []
    assert found.unread == [("data.zip: two: three", "it is an archive in an archive in an archive")]


def locked():
    """A zip archive that says of its file that it is encrypted, in the file's own header and in the directory."""
    content = bytearray(zipped(a=TEXT))
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(header) + flags] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"Rar!\x1a\x07\x01\x00", "RAR archives cannot be read"),
        (b"7z\xbc\xaf\x27\x1c", "7z archives cannot be read"),
        (b"\x28\xb5\x2f\xfd", "Zstandard archives cannot be read"),
        (zipped(a=b"x" * 100)[:60], "zip"),
        (locked(), "encrypted"),
        (gzip.compress(b"x" * 10_000, mtime=0)[:-10], "ended before"),
        (tarred(a=b"x" * 10_000)[:5000], "unexpected end of data"),
    ],
    ids=["rar", "7z", "zstandard", "cut zip", "locked zip", "cut gz", "cut tar"],  # their bytes hold the time
)
def test_what_cannot_be_read_is_named(tmp_path, content, reason):
    ((name, said),) = search(tmp_path / "a.bin", content).unread
    assert name == "a.bin"
    assert reason in said


def test_what_unpacks_to_too_much_is_named_and_a_token_before_it_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_MOST", 2 << 20)
    found = search(tmp_path / "a.zip", zipped(a=TEXT, b=b"\0" * (3 << 20)))
    assert found.found == ["a.zip: a"]
    assert [name for name, _ in found.unread] == ["a.zip"]

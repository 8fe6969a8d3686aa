"""The stand-in of the Hub against the real clients, each in a process of its own with fresh caches."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from hub_server import READ_TOKEN, WRITE_TOKEN, client_environment, run_client
from hub_server.cards import check_card
from tiny_images import image_split, write_parquet

pytest_plugins = ["hub_server.fixture"]
IS_2 = int(version("huggingface_hub").split(".")[0]) >= 2


def outcome(done):
    """Return what a client printed last, as JSON; show its errors where it failed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fetch(url, method="GET", body=None, **headers):
    """Call the stand-in directly; return status, headers and content. Redirects are not followed."""
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with OPENER.open(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


OPENER = urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler({}))

ROUND_TRIP = """
import json, os
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download

api, up = HfApi(), Path("up")
(up / "sub").mkdir(parents=True)
(up / "notes.txt").write_text("small")
(up / "empty.txt").write_text("")
(up / "sub" / "large.bin").write_bytes(os.urandom(1000))
(up / "model.safetensors").write_bytes(os.urandom(200_000))
(up / "scratch.tmp").write_text("not for others")
(up / ".gitignore").write_text("*.tmp")
first = api.create_repo("tester/thing", private=True)
again = api.create_repo("tester/thing", exist_ok=True)
pushed = api.upload_folder(folder_path=up, repo_id="tester/thing", commit_message="Everything")
api.create_tag("tester/thing", tag="v1")
api.create_branch("tester/thing", branch="trial/one")
api.upload_file(path_or_fileobj=b"other", path_in_repo="notes.txt", repo_id="tester/thing", revision="trial/one")
api.upload_file(path_or_fileobj=up / "sub" / "large.bin", path_in_repo="copy.bin", repo_id="tester/thing")
api.delete_folder("sub", "tester/thing")
found = {}
for revision in ("v1", "main", "trial/one", pushed.oid[:10]):
    folder = Path(snapshot_download("tester/thing", revision=revision))
    found[revision] = {
        path.relative_to(folder).as_posix(): path.read_bytes().hex()
        for path in folder.rglob("*") if path.is_file()
    }
info = api.model_info("tester/thing", revision="v1", files_metadata=True)
refs = api.list_repo_refs("tester/thing")
print(json.dumps({
    "urls": [first, again],
    "commit": [str(pushed.commit_url), pushed.oid],
    "local": {path.relative_to(up).as_posix(): path.read_bytes().hex() for path in up.rglob("*") if path.is_file()},
    "found": found,
    "private": info.private,
    "siblings": {one.rfilename: [one.size, bool(one.lfs)] for one in info.siblings},
    "branches": {one.name: one.target_commit for one in refs.branches},
    "tags": {one.name: one.target_commit for one in refs.tags},
    "titles": [one.title for one in api.list_repo_commits("tester/thing")],
    "tree": sorted(one.path for one in api.list_repo_tree("tester/thing", revision="v1")),
    "deep": sorted(one.path for one in api.list_repo_tree("tester/thing", "sub", revision="v1", expand=True)),
    "last": [one.last_commit.title for one in api.get_paths_info("tester/thing", ["notes.txt", "no"], expand=True)],
}))
"""


@pytest.mark.slow
def test_folder_comes_back_byte_equal_through_every_way_of_upload(hub, tmp_path):
    hub.part_size = 64 << 10
    told = outcome(run_client(hub, tmp_path / "home", ROUND_TRIP))
    assert told["urls"] == [f"{hub.url}/tester/thing"] * 2
    assert told["commit"] == [f"{hub.url}/tester/thing/commit/{told['commit'][1]}", told["commit"][1]]
    local = told["local"]
    assert local.pop("scratch.tmp")
    attributes = hub.files("tester/thing")[".gitattributes"].hex()
    found = told["found"]
    assert found["v1"] == local | {".gitattributes": attributes} == found[told["commit"][1][:10]]
    assert found["trial/one"] == found["v1"] | {"notes.txt": b"other".hex()}
    large = local["sub/large.bin"]
    assert found["main"] == {k: v for k, v in found["v1"].items() if k != "sub/large.bin"} | {"copy.bin": large}
    assert {path: content.hex() for path, content in hub.files("tester/thing").items()} == found["main"]
    assert told["private"] is True
    assert told["siblings"]["model.safetensors"] == [200_000, True]
    assert told["siblings"]["notes.txt"] == [5, False]
    assert told["tags"] == {"v1": told["commit"][1]}
    assert set(told["branches"]) == {"main", "trial/one"}
    assert told["titles"][-2:] == ["Everything", "initial commit"]
    assert told["titles"] == hub.titles("tester/thing")[::-1]
    assert told["tree"] == sorted(
        [".gitattributes", ".gitignore", "empty.txt", "model.safetensors", "notes.txt", "sub"]
    )
    assert told["deep"] == ["sub/large.bin"]
    assert told["last"] == ["Everything"]
    assert [call.status for call in hub.called("/parts/", "PUT")] == [200] * 4
    assert len(hub.called("/objects/", "PUT", "storage")) == 1, "the copy was uploaded, though storage had it"
    assert len(hub.called("/objects/verify")) == 2
    assert all(call.known for call in hub.calls)
    assert not any("authorization" in call.headers for call in hub.calls if call.origin == "storage")


CARDS = """
import json, sys
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

api = HfApi()
api.create_repo("tester/card")
result = EvalResult("image-classification", "cifar10", "CIFAR-10", "accuracy", 0.9625, task_name="Images")
data = ModelCardData(license="mit", tags=["one"], eval_results=[result], model_name="net", base_model="tester/other")
card = ModelCard(f"---\\n{data.to_yaml()}\\n---\\n# Text\\n")
if sys.argv[1] == "True":
    card.push_to_hub("tester/card")
else:  # huggingface_hub 1 asks huggingface.co itself to validate, whatever HF_ENDPOINT says
    api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="tester/card")
again = ModelCard.load("tester/card")
refused = {}
for name, change in {
    "list": ("license: mit", "license: [mit]"),
    "id": ("tester/other", "tester/other/third"),
    "metric": ("value: 0.9625", "other: 0.9625"),
    "nan": ("value: 0.9625", "value: .nan"),
    "numpy": ("value: 0.9625", "value: !!python/object/apply:numpy.core.multiarray.scalar [1]"),
    "yaml": ("license: mit", "license: [mit"),
}.items():
    assert change[0] in str(card)
    bad = card.content.replace(*change).encode()
    try:
        api.upload_file(path_or_fileobj=bad, path_in_repo="README.md", repo_id="tester/card")
        refused[name] = ["nothing", ""]
    except ValueError as error:
        refused[name] = [type(error).__name__, str(error)]
try:
    ModelCard(card.content.replace("value: 0.9625", "other: 0.9625"))
except ValueError as error:
    refused["strict"] = [type(error).__name__, str(error)]
info = api.model_info("tester/card")
print(json.dumps({
    "value": again.data.eval_results[0].metric_value, "model_index": info.card_data.eval_results[0].metric_value,
    "tags": info.tags, "refused": refused,
}))
"""


@pytest.mark.slow
def test_good_card_is_pushed_and_read_and_bad_ones_are_refused(hub, tmp_path):
    told = outcome(run_client(hub, tmp_path / "home", CARDS, IS_2))
    assert told["value"] == told["model_index"] == 0.9625
    assert told["tags"] == ["one"]
    expected = {
        "list": '"license" must be a string',
        "id": '"base_model" with value "tester/other/third" is not valid',
        "metric": '"model-index[0].results[0].metrics[0].value" is required',
        "nan": '"model-index[0].results[0].metrics[0].value" must be finite',
        "numpy": "YAML Metadata Error",
        "yaml": "YAML Metadata Error",
        "strict": "",
    }
    assert set(told["refused"]) == set(expected)
    for name, text in expected.items():
        kind, message = told["refused"][name]
        assert kind != "nothing", name
        assert text in message, name
    assert hub.titles("tester/card") == ["initial commit", "Upload README.md with huggingface_hub"]


REFUSALS = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download

WRITE, READ = sys.argv[1:]


def name_of(call, *args, **kwargs):
    try:
        return ["done", None, str(call(*args, **kwargs))]
    except Exception as error:
        return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None), str(error)]


api = HfApi()
push = {"path_or_fileobj": b"x", "path_in_repo": "x.txt"}
print(json.dumps({
    "role": HfApi().whoami(token=READ)["auth"]["accessToken"]["role"],
    "bad whoami": name_of(api.whoami, token="hf_wrong"),
    "bad create": name_of(api.create_repo, "tester/new", token="hf_wrong"),
    "bad push": name_of(api.upload_file, **push, repo_id="tester/open", token="hf_wrong"),
    "bad read": name_of(hf_hub_download, "tester/open", "a.txt", token="hf_wrong"),
    "read create": name_of(api.create_repo, "tester/new", token=READ),
    "read exists": name_of(api.create_repo, "tester/open", token=READ, exist_ok=True),
    "read push": name_of(api.upload_file, **push, repo_id="tester/open", token=READ),
    "read private": name_of(hf_hub_download, "tester/closed", "a.txt", token=READ),
    "no token push": name_of(api.upload_file, **push, repo_id="tester/open", token=False),
    "no token read": name_of(hf_hub_download, "tester/open", "a.txt", token=False),
    "no token private": name_of(api.model_info, "tester/closed", token=False),
    "foreign create": name_of(api.create_repo, "somebody/new", token=WRITE),
    "foreign push": name_of(api.upload_file, **push, repo_id="somebody/else", token=WRITE),
    "create twice": name_of(api.create_repo, "tester/open", token=WRITE),
    "missing push": name_of(api.upload_file, **push, repo_id="tester/nothing", token=WRITE),
    "missing info": name_of(api.model_info, "tester/nothing", token=WRITE),
    "missing kind": name_of(api.dataset_info, "tester/open", token=WRITE),
    "missing revision": name_of(hf_hub_download, "tester/open", "a.txt", revision="v9", token=WRITE),
    "missing file": name_of(hf_hub_download, "tester/open", "b.txt", token=WRITE),
    "missing branch": name_of(api.upload_file, **push, repo_id="tester/open", revision="v9", token=WRITE),
    "old parent": name_of(api.upload_file, **push, repo_id="tester/open", parent_commit="0" * 40, token=WRITE),
    "branch twice": name_of(api.create_branch, "tester/open", branch="main", token=WRITE),
    "exists": [api.repo_exists("tester/open"), api.file_exists("tester/open", "b.txt")],
}))
"""
REPOSITORY, REVISION, ENTRY, PLAIN = (
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "RemoteEntryNotFoundError",
    "HfHubHTTPError",
)
REFUSED = {
    "bad whoami": (PLAIN, 401, "Invalid user token"),
    "bad create": (PLAIN, 401, "Invalid credentials in Authorization header"),
    "bad push": (PLAIN, 401, "Invalid credentials in Authorization header"),
    "bad read": (PLAIN, 401, "Invalid credentials in Authorization header"),
    "read create": (PLAIN, 403, "needs the role write"),
    "read push": (PLAIN, 403, "needs the role write"),
    "no token push": (REPOSITORY, 401, ""),
    "no token private": (REPOSITORY, 401, "closed"),
    "foreign create": (PLAIN, 403, "namespace of somebody/new"),
    "foreign push": (PLAIN, 403, "namespace of somebody/else"),
    "create twice": (PLAIN, 409, "You already created this repo"),
    "missing push": (REPOSITORY, 404, "nothing"),
    "missing info": (REPOSITORY, 404, "nothing"),
    "missing kind": (REPOSITORY, 404, "datasets/tester/open"),
    "missing revision": (REVISION, 404, "v9"),
    "missing file": (ENTRY, 404, "b.txt"),
    "missing branch": (REVISION, 404, "v9"),
    "old parent": (PLAIN, 412, "A commit has happened since"),
    "branch twice": (PLAIN, 409, "Reference already exists"),
}


@pytest.mark.slow
def test_client_raises_its_own_errors_for_tokens_and_for_what_is_missing(hub, tmp_path):
    hub.add("tester/open", {"a.txt": b"open"})
    hub.add("tester/closed", {"a.txt": b"closed"}, private=True)
    hub.add("somebody/else")
    told = outcome(run_client(hub, tmp_path / "home", REFUSALS, WRITE_TOKEN, READ_TOKEN))
    assert told["role"] == "read"
    assert told["exists"] == [True, False]
    for name in ("read exists", "read private", "no token read"):
        assert told[name][0] == "done", told[name]
    for name, (kind, status, text) in REFUSED.items():
        assert told[name][:2] == [kind, status], (name, told[name])
        assert text in told[name][2], (name, told[name])
    assert hub.titles("tester/open") == ["initial commit", "Add files"]
    assert set(hub.repositories) == {("models", f"tester/{one}") for one in ("open", "closed")} | {
        ("models", "somebody/else")
    }


FAULTS = """
import json, sys, time
from huggingface_hub import HfApi, hf_hub_download

waits = []
time.sleep = waits.append  # what the client would have waited
api, told = HfApi(), {}


def attempt(name, call, *args, **kwargs):
    waits.clear()
    try:
        call(*args, **kwargs)
        found = ["done", None]
    except Exception as error:
        cause = (error.__cause__ or error) if type(error) is RuntimeError else error
        found = [type(cause).__name__, getattr(getattr(cause, "response", None), "status_code", None)]
    told[name] = [*found, list(waits)]


for name in sys.argv[1:]:
    suffix = "bin" if "storage" in name else "txt"
    attempt(
        name, api.upload_file, path_or_fileobj=name.encode(), path_in_repo=f"file.{suffix}", repo_id=f"tester/{name}"
    )
for name in ("read", "slow-head"):
    attempt(name, hf_hub_download, "tester/reading", "file.bin", etag_timeout=0.2)
print(json.dumps(told))
"""
ALL_WAITS = [1, 2, 4, 8, 8]
# What goes wrong in a push to the repository of this name, and how the client's call ends: name of its exception,
# status in it, seconds that it waited before each new attempt.
PUSHES = {
    "preupload-503-once": ({"status": 503}, ["done", None, [1]]),
    "preupload-503-always": ({"status": 503, "times": 6}, ["HfHubHTTPError", 503, ALL_WAITS]),
    "storage-503-once": ({"status": 503}, ["done", None, [1]]),
    "storage-503-always": ({"status": 503, "times": 6}, ["HfHubHTTPError", 503, ALL_WAITS]),
    "commit-503": ({"status": 503}, ["HfHubHTTPError", 503, []]),
    "commit-429": ({"status": 429}, ["HfHubHTTPError", 429, []]),
    "commit-drop": ({"drop": True}, ["RemoteProtocolError", None, []]),
}


def at(name):
    """Return the addresses of a push to the repository `name` that its fault strikes."""
    if name.startswith("storage"):
        return f"^/objects/{hashlib.sha256(name.encode()).hexdigest()}$"
    return f"/{name}/{name.partition('-')[0]}/"


@pytest.mark.slow
def test_faults_end_as_users_meet_them_and_a_later_push_completes(hub, tmp_path):
    hub.add("tester/reading", {"file.bin": b"kept"})
    faults = [hub.fail(at(name), **fault) for name, (fault, _) in PUSHES.items()]
    faults.append(hub.fail("/reading/resolve/", method="HEAD", delay=1.0, after=1))
    for name in PUSHES:
        hub.add(f"tester/{name}")
    told = outcome(run_client(hub, tmp_path / "first", FAULTS, *PUSHES))
    for name, (_, expected) in PUSHES.items():
        assert told[name] == expected, name
        done = expected[0] == "done"
        assert (name.encode() in hub.files(f"tester/{name}").values()) == done, name
        assert len(hub.titles(f"tester/{name}")) == 1 + done, name
    assert told["read"] == told["slow-head"] == ["done", None, []]
    assert len(hub.called("/objects/", "GET")) == 1, "the answer came too late, and the cache was used"
    assert [fault.times for fault in faults] == [0] * len(faults)

    later = outcome(run_client(hub, tmp_path / "later", FAULTS, *PUSHES))
    assert all(later[name] == ["done", None, []] for name in PUSHES)
    assert all(name.encode() in hub.files(f"tester/{name}").values() for name in PUSHES)


@pytest.mark.slow
def test_server_that_leaves_refuses_connections_and_comes_back_with_what_it_held(hub, tmp_path):
    for name in ("commit-gone", "after"):
        hub.add(f"tester/{name}")
    hub.fail("/commit-gone/commit/", gone=True)
    told = outcome(run_client(hub, tmp_path / "first", FAULTS, "commit-gone", "after"))
    assert told["commit-gone"] == ["RemoteProtocolError", None, []]
    if IS_2:
        assert told["after"] == ["ConnectError", None, ALL_WAITS]
        assert told["read"][0] == "LocalEntryNotFoundError"
    else:  # closes its session when it is refused, and then finds it closed
        assert told["after"] == ["RuntimeError", None, [1]]
        assert told["read"][0] == "RuntimeError"
    before = hub.url, hub.storage_url
    hub.start()
    assert (hub.url, hub.storage_url) == before
    hub.add("tester/reading", {"file.bin": b"kept"})
    told = outcome(run_client(hub, tmp_path / "later", FAULTS, "commit-gone", "after"))
    assert all(end == ["done", None, []] for end in told.values())
    assert hub.files("tester/after")["file.txt"] == b"after"
    assert hub.titles("tester/commit-gone") == ["initial commit", "Upload file.txt with huggingface_hub"]


XET = """
import hashlib, json, os, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download

name, content = sys.argv[1], os.urandom(300_000)
Path("large.bin").write_bytes(content)
HfApi().upload_file(path_or_fileobj="large.bin", path_in_repo="large.bin", repo_id=name)
found = Path(hf_hub_download(name, "large.bin", local_dir="back")).read_bytes()
print(json.dumps([found == content, hashlib.sha256(content).hexdigest()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_large_file_goes_the_xet_way_and_comes_back(hub, tmp_path):
    hub.xet_folder = tmp_path / "chunks"
    hub.add("tester/open")
    equal, oid = outcome(run_client(hub, tmp_path / "home", XET, "tester/open"))
    assert equal
    file = hub.repositories["models", "tester/open"].at("main").files["large.bin"]
    assert (file.sha256, file.size) == (oid, 300_000)
    assert [call.status for call in hub.called("/xet-write-token/")] == [200]
    assert hub.called("/xet-read-token/")
    assert not any(call.origin == "storage" for call in hub.calls)


DATA = """
import hashlib, json
from datasets import load_dataset

data = load_dataset("uoft-cs/cifar10")
stream = load_dataset("uoft-cs/cifar10", split="test", streaming=True)


def digest(rows):
    return hashlib.sha256(b"".join(bytes([row["label"]]) + row["img"].tobytes() for row in rows)).hexdigest()


names = data["train"].features["label"].names
found = {name: [len(split), digest(split)] for name, split in data.items()}
print(json.dumps({"names": names, "splits": found, "stream": digest(stream)}))
"""


@pytest.mark.slow
def test_data_set_in_the_schema_of_cifar10_is_loaded_and_streamed(hub, tmp_path):
    splits = {
        "train": image_split(20, classes=10, image="img", size=(32, 32)),
        "test": image_split(10, classes=10, image="img", size=(32, 32), seed=1),
    }
    written = write_parquet(tmp_path / "plain_text", **splits)
    files = {f"plain_text/{path.name}": path.read_bytes() for path in written.iterdir()}
    hub.add("uoft-cs/cifar10", files, kind="datasets")
    told = outcome(run_client(hub, tmp_path / "home", DATA, token=None))
    digests = {
        name: hashlib.sha256(b"".join(bytes([row["label"]]) + row["img"].tobytes() for row in split)).hexdigest()
        for name, split in splits.items()
    }
    assert told["names"] == splits["train"].features["label"].names
    assert told["splits"] == {name: [len(split), digests[name]] for name, split in splits.items()}
    assert told["stream"] == digests["test"]
    ranged = [call for call in hub.calls if "range" in call.headers and call.origin == "storage"]
    assert ranged, "a stream reads ranges"
    assert {call.status for call in ranged} == {206}
    assert all(call.known for call in hub.calls), [str(call) for call in hub.calls if not call.known]


def test_answers_have_the_headers_that_clients_look_for(hub):
    hub.add("tester/open", {"a.txt": b"0123456789", "big.bin": b"abcdefghij"})
    commit = hub.repositories["models", "tester/open"].at("main")
    resolve = f"{hub.url}/tester/open/resolve/main"
    for method, content in (("GET", b"0123456789"), ("HEAD", b"")):
        status, headers, found = fetch(f"{resolve}/a.txt", method)
        assert (status, found, headers["Content-Length"]) == (200, content, "10")
        assert headers["ETag"] == '"ad471007bd7f5983d273b9584e5629230150fd54"'  # git hash-object
        assert (headers["X-Repo-Commit"], headers["Accept-Ranges"]) == (commit.oid, "bytes")
        status, headers, found = fetch(f"{resolve}/big.bin", method)
        name = hashlib.sha256(b"abcdefghij").hexdigest()
        assert (status, found, headers["X-Linked-Size"]) == (302, b"", "10")
        assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{name}"'
        assert headers["Location"] == f"{hub.storage_url}/objects/{name}"
        assert headers["X-Repo-Commit"] == commit.oid
        status, headers, _ = fetch(f"{resolve}/none", method)
        assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", commit.oid)
    for path, status, code in (
        ("/tester/open/resolve/v9/a.txt", 404, "RevisionNotFound"),
        ("/api/models/tester/none", 401, "RepoNotFound"),
    ):
        found = fetch(hub.url + path)
        assert (found[0], found[1]["X-Error-Code"]) == (status, code)
    assert fetch(f"{hub.url}/api/unknown")[0] == 404
    assert [call.path for call in hub.calls if not call.known] == ["/api/unknown"]


@pytest.mark.parametrize(
    ("asked", "status", "content", "place"),
    [
        ("bytes=2-4", 206, b"cde", "bytes 2-4/10"),
        ("bytes=7-", 206, b"hij", "bytes 7-9/10"),
        ("bytes=-2", 206, b"ij", "bytes 8-9/10"),
        ("bytes=8-99", 206, b"ij", "bytes 8-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("lines=1-2", 200, b"abcdefghij", None),
    ],
)
def test_ranges_of_small_and_of_large_files(hub, asked, status, content, place):
    hub.add("tester/open", {"a.txt": b"abcdefghij", "big.bin": b"abcdefghij"})
    large = fetch(f"{hub.url}/tester/open/resolve/main/big.bin")[1]["Location"]
    for url in (f"{hub.url}/tester/open/resolve/main/a.txt", large):
        found, headers, body = fetch(url, Range=asked)
        assert (found, body, headers["Content-Range"]) == (status, content, place)


def test_storage_refuses_tokens_and_content_that_was_not_announced(hub):
    hub.add("tester/open", {"big.bin": b"abcdefghij"})
    large = fetch(f"{hub.url}/tester/open/resolve/main/big.bin")[1]["Location"]
    assert fetch(large)[0] == 200
    assert fetch(large, Authorization=f"Bearer {WRITE_TOKEN}")[0] == 400
    oid = hashlib.sha256(b"right").hexdigest()
    assert fetch(f"{hub.storage_url}/objects/{oid}", "PUT", b"right")[0] == 403
    push = {"Authorization": f"Bearer {WRITE_TOKEN}"}
    asked = json.dumps({"objects": [{"oid": oid, "size": 5}]}).encode()
    _, _, answer = fetch(f"{hub.url}/tester/open.git/info/lfs/objects/batch", "POST", asked, **push)
    href = json.loads(answer)["objects"][0]["actions"]["upload"]["href"]
    line = {"key": "lfsFile", "value": {"path": "x.bin", "oid": oid, "size": 5, "algo": "sha256"}}
    commit = "\n".join(json.dumps(one) for one in ({"key": "header", "value": {"summary": "x"}}, line)).encode()
    address = f"{hub.url}/api/models/tester/open/commit/main"
    assert fetch(href, "PUT", b"wrong")[0] == 403
    assert fetch(address, "POST", commit, **push)[0] == 400, "a commit names an object that storage has not"
    assert fetch(href, "PUT", b"right")[0] == 200
    assert fetch(address, "POST", commit, **push)[0] == 200
    assert hub.files("tester/open")["x.bin"] == b"right"


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a//b", ".git/config", "a/./b"])
def test_commit_is_refused_as_a_whole_for_a_path_that_leaves_the_repository(hub, path):
    hub.add("tester/open")
    lines = [{"key": "header", "value": {"summary": "x"}}]
    lines += [{"key": "file", "value": {"path": one, "content": ""}} for one in ("good.txt", path)]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    address = f"{hub.url}/api/models/tester/open/commit/main"
    status, _, answer = fetch(address, "POST", body, Authorization=f"Bearer {WRITE_TOKEN}")
    assert (status, json.loads(answer)["error"]) == (400, f"the path {path!r} is not allowed")
    assert hub.titles("tester/open") == ["initial commit"]


def test_faults_strike_the_calls_that_were_named_and_no_others(hub):
    hub.add("tester/open", {"a.txt": b"a"})
    address = f"{hub.url}/tester/open/resolve/main/a.txt"
    fault = hub.fail("/a.txt$", method="GET", status=503, after=1, times=2)
    assert [fetch(address)[0], fetch(address, "HEAD")[0]] == [200, 200]
    assert [fetch(address)[0] for _ in range(3)] == [503, 503, 200]
    assert fault.times == 0
    hub.fail("/a.txt$", delay=0.3)
    began = time.monotonic()
    assert fetch(address)[::2] == (200, b"a")
    assert time.monotonic() - began >= 0.3
    hub.fail("/a.txt$", drop=True)
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(address)
    assert [call.status for call in hub.called("a.txt")] == [200, 200, 503, 503, 200, 200, None]
    hub.fail("/a.txt$", gone=True)
    with pytest.raises(http.client.RemoteDisconnected):
        fetch(address)
    with pytest.raises(urllib.error.URLError, match="refused"):
        fetch(address)
    hub.start()
    assert fetch(address)[::2] == (200, b"a")


def test_errors_of_the_stand_in_itself_are_kept(hub):
    address = f"{hub.url}/api/validate-yaml"
    assert fetch(address, "POST", b"no json")[0] == 500
    assert [type(error) for error in hub.errors] == [json.JSONDecodeError]
    hub.errors.clear()


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ("- a list", "must be a mapping"),
        ("tags: [1]", '"tags" must be a string or a list of strings'),
        ("model-index: {}", '"model-index" must be an array'),
        ("model-index: [{results: []}]", '"model-index[0].name" is required'),
        ("model-index: [{name: net}]", '"model-index[0].results" must be an array'),
        ("model-index: [{name: net, results: [1]}]", '"model-index[0].results[0]" must be an object'),
        ("model-index: [{name: net, results: [{metrics: []}]}]", '.task" must be an object'),
        ("model-index: [{name: net, results: [{task: {type: 1}}]}]", '.task.type" must be a string'),
        ("model-index: [{name: net, results: [{task: {type: a}, dataset: {name: a}}]}]", '.dataset.type" is required'),
        ("model-index: [{name: net, results: [{metrics: []}]}]", '.metrics" must be an array that is not empty'),
        ("model-index: [{name: net, results: [{metrics: [{value: 1}]}]}]", '.metrics[0].type" is required'),
    ],
)
def test_cards_are_validated_field_by_field(metadata, error):
    errors, _ = check_card(f"---\n{metadata}\n---\ntext --- more\n")
    assert any(error in one for one in errors), errors


def test_card_without_metadata_is_warned_about():
    assert check_card("# Title\n") == ([], ["empty or missing yaml metadata in repo card"])
    assert check_card("---\nlicense: mit\n---\n") == ([], [])


def test_environment_of_clients_knows_nothing_of_the_outside(hub, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "outside")
    found = client_environment(hub, tmp_path, token=None)
    assert "outside" not in found.values()
    assert "HF_TOKEN" not in found
    assert (found["HF_ENDPOINT"], found["HF_HOME"]) == (hub.url, str(tmp_path))
    assert client_environment(hub, tmp_path)["HF_TOKEN"] == WRITE_TOKEN

"""The answers of the hub to those who read."""

from urllib.parse import parse_qs

from hub_server.cards import read_metadata
from hub_server.http_service import Answer, content_answer, json_answer, refuse
from hub_server.repositories import USER
from hub_server.xet import XetFile


def whoami(hub, request):
    if request.token is None:
        return refuse(401, "Invalid username or password.")
    access = {"displayName": "test", "role": hub.tokens[request.token]}
    user = {"type": "user", "id": "1", "name": USER, "fullname": "A Tester", "isPro": False, "orgs": []}
    return json_answer({**user, "auth": {"type": "access_token", "accessToken": access}})


def info(hub, request, repository, revision="main", tip=None):
    commit = tip or repository.at(revision)
    card = _card(commit)
    tags = card.get("tags", [])
    value = {
        **{"_id": "1", "id": repository.name, "author": repository.name.partition("/")[0], "sha": commit.oid},
        **{"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0},
        **{"createdAt": repository.created, "lastModified": commit.date, "cardData": card},
        "tags": [tags] if isinstance(tags, str) else tags,
        "siblings": [_sibling(path, file, "blobs" in request.query) for path, file in sorted(commit.files.items())],
        "usedStorage": sum(file.size for file in commit.files.values()),
    }
    if repository.kind == "models":
        value |= {name: card[name] for name in ("library_name", "pipeline_tag", "model-index") if name in card}
        value["modelId"] = repository.name
    return json_answer(value)


def _card(commit):
    readme = commit.files.get("README.md")
    return {} if readme is None else read_metadata(readme.content.decode())


def _sibling(path, file, with_blob):
    if not with_blob:
        return {"rfilename": path}
    value = {"rfilename": path, "size": file.size, "blobId": file.blob_oid}
    if file.lfs:
        value["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return value


def tree(hub, request, repository, revision, tip, folder):
    entries = tip.entries(folder or "", recursive=_is_true(request.query, "recursive"))
    if entries is None:
        return refuse(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=tip.oid)
    expand = _is_true(request.query, "expand")
    return json_answer([_entry(tip, path, file, expand) for path, file in entries.items()], X_Repo_Commit=tip.oid)


def paths_info(hub, request, repository, revision, tip):
    """Describe the paths of a form, or of JSON; those that do not exist are left out."""
    is_json = "json" in request.headers.get("content-type", "")
    asked = request.json() if is_json else parse_qs(request.body.decode())
    every = tip.entries(recursive=True)
    found = [path for path in asked.get("paths", []) if path in every]
    return json_answer([_entry(tip, path, every[path], _is_true(asked, "expand")) for path in found])


def _is_true(query, name):
    value = query.get(name, False)
    return value is True or (isinstance(value, list) and value[0].lower() in ("true", "1"))


def _entry(commit, path, file, expand):
    if file is None:
        inside = [one for one in commit.files if one.startswith(f"{path}/")]
        value = {"type": "directory", "oid": commit.oid, "size": 0, "path": path}
        last = max((commit.last_change_of(one) for one in inside), key=lambda found: found.date)
    else:
        value = {"type": "file", "oid": file.blob_oid, "size": file.size, "path": path}
        last = commit.last_change_of(path)
        if file.lfs:
            value["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    if expand:
        value["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
        value["securityFileStatus"] = None
    return value


def commits(hub, request, repository, revision, tip):
    return json_answer(
        [
            {"id": one.oid, "title": one.title, "message": one.message, "date": one.date, "authors": [{"user": USER}]}
            for one in tip.history()
        ]
    )


def refs(hub, request, repository):
    branches = [_ref("heads", name, commit) for name, commit in repository.branches.items()]
    tags = [_ref("tags", name, commit) for name, commit in repository.tags.items()]
    return json_answer({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def _ref(kind, name, commit):
    return {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit.oid}


def resolve(hub, request, repository, revision, tip, path):
    """Answer with the file, or send to storage where it is large."""
    file = tip.files.get(path)
    if file is None:
        return refuse(404, "Entry not found", "EntryNotFound", X_Repo_Commit=tip.oid)
    quoted = f'"{file.etag}"'
    if not file.lfs:
        return content_answer(file.content, request, ETag=quoted, X_Repo_Commit=tip.oid)
    headers = {
        **{"X-Repo-Commit": tip.oid, "ETag": quoted, "X-Linked-Etag": quoted, "Accept-Ranges": "bytes"},
        **{"X-Linked-Size": str(file.size), "Location": f"{hub.storage_url}/objects/{file.sha256}"},
    }
    if isinstance(file, XetFile):
        route = f"{hub.url}/api/{repository.kind}/{repository.name}/xet-read-token/{tip.oid}"
        headers |= {"X-Xet-Hash": file.xet_hash, "X-Xet-Refresh-Route": route}
    return Answer(302, b"", headers)

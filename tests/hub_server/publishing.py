"""The answers of the hub to those who write."""

import base64
import json
from fnmatch import fnmatch

from hub_server.cards import check_card
from hub_server.http_service import Answer, json_answer, refuse
from hub_server.repositories import USER, Repository, StoredFile
from hub_server.xet import find_file


def refusal_to_write(hub, request, name):
    """Return None where the token may write under this name, and the refusal elsewhere."""
    if request.token is None:
        return refuse(401, "Invalid username or password.")
    if hub.tokens[request.token] != "write":
        return refuse(403, "Forbidden: the token has the role read, and this call needs the role write")
    if name.partition("/")[0] != USER:
        return refuse(403, f"You don't have the rights to write under the namespace of {name}")
    return None


def create_repository(hub, request):
    asked = request.json()
    kind, name = asked.get("type", "model") + "s", f"{asked.get('organization') or USER}/{asked.get('name')}"
    wrong = refusal_to_write(hub, request, name)
    if wrong is not None:
        return wrong
    if not asked.get("name") or kind not in ("models", "datasets"):
        return refuse(400, f"a model or a data set with a name can be created, not {asked}")
    private = bool(asked.get("private")) or asked.get("visibility") == "private"
    status = 409 if (kind, name) in hub.repositories else 200
    repository = hub.repositories.setdefault((kind, name), Repository(kind, name, private))
    value = {"url": hub.url + repository.page, "name": name, "id": "1"}
    if status == 409:
        value["error"] = "You already created this repo"
    return json_answer(value, status)


def validate_card(hub, request):
    errors, warnings = check_card(request.json()["content"])
    value = {name: [{"message": one} for one in texts] for name, texts in (("errors", errors), ("warnings", warnings))}
    return json_answer(value, 400 if errors else 200)


def preupload(hub, request, repository, revision, tip):
    """Say of each file how it is to be sent, whether it is ignored, and what is there now."""
    asked = request.json()
    ignore = asked.get("gitIgnore") or tip.files.get(".gitignore", StoredFile(b"")).content.decode()
    files = []
    for file in asked["files"]:
        path = file["path"]
        mode = "lfs" if repository.keeps_as_lfs(path, file["size"], revision) else "regular"
        value = {"path": path, "uploadMode": mode, "shouldIgnore": _is_ignored(path, ignore)}
        if path in tip.files:
            value["oid"] = tip.files[path].etag
        files.append(value)
    return json_answer({"files": files})


def _is_ignored(path, ignore):
    """Whether a line of .gitignore names the file or a folder that it is in."""
    lines = [line.strip().strip("/") for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    parts = path.split("/")
    wholes = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch(name, line) for line in lines for name in (*parts, *wholes))


def lfs_batch(hub, request, repository):
    """Say of each object where to put it: at once, in parts, or nowhere because it is there."""
    asked = request.json()
    if hub.xet_folder is not None and "xet" in asked["transfers"]:
        return json_answer({"transfer": "xet", "objects": [{**one, "actions": {}} for one in asked["objects"]]})
    objects, has_parts = [], False
    for one in asked["objects"]:
        value = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.storage.objects:
            places = [hub.storage_url + path for path in hub.storage.grant(one["oid"], one["size"], hub.part_size)]
            upload = {"href": places[0], "header": {}}
            if len(places) > 1:
                has_parts = True
                header = {"chunk_size": str(hub.part_size)} | {str(i): url for i, url in enumerate(places, 1)}
                upload = {"href": f"{hub.url}/api/complete-multipart/{one['oid']}", "header": header}
            verify = {"href": f"{hub.url}{repository.page}.git/info/lfs/objects/verify"}
            value["actions"] = {"upload": upload, "verify": verify}
        objects.append(value)
    transfer = "multipart" if has_parts else "basic"
    return json_answer({"transfer": transfer, "objects": objects})


def complete_multipart(hub, request, oid):
    wrong = hub.storage.complete(oid, request.json()["parts"])
    return json_answer({"success": True}) if wrong is None else refuse(400, wrong)


def lfs_verify(hub, request, repository):
    asked = request.json()
    stored = hub.storage.objects.get(asked["oid"])
    if stored is None or len(stored) != asked["size"]:
        return refuse(404, f"the storage holds no {asked}")
    return Answer()


def commit(hub, request, repository, revision, tip):
    """Read the lines of a commit, and add it to the branch as a whole or not at all."""
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if revision not in repository.branches:
        return refuse(404, f"{revision} is not a branch", "RevisionNotFound")
    if "create_pr" in request.query:
        return refuse(400, "pull requests are not part of the stand-in")
    header = lines[0]["value"]
    if lines[0]["key"] != "header" or not header.get("summary"):
        return refuse(400, "a commit starts with a header that has a summary")
    if not tip.oid.startswith(header.get("parentCommit") or ""):
        return refuse(412, "A commit has happened since. Please refresh and try again.")
    changes, deleted = {}, []
    for line in lines[1:]:
        wrong = _read_line(hub, line["key"], line["value"], changes, deleted)
        if wrong is not None:
            return refuse(400, wrong)
    made = repository.commit(revision, header["summary"], header.get("description", ""), changes, deleted)
    url = f"{hub.url}{repository.page}/commit/{made.oid}"
    return json_answer({"success": True, "commitUrl": url, "commitOid": made.oid, "hookOutput": ""})


def _read_line(hub, key, value, changes, deleted):
    """Add what a line says to `changes` or `deleted`; return what is wrong with it, or None."""
    path = value["path"]
    if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.rstrip("/").split("/")):
        return f"the path {path!r} is not allowed"
    if key == "file":
        changes[path] = StoredFile(base64.b64decode(value["content"], validate=True))
        if path == "README.md" and (errors := check_card(changes[path].content.decode())[0]):
            return f"Invalid metadata in README.md: {'; '.join(errors)}"
    elif key == "lfsFile":
        content = hub.storage.objects.get(value["oid"])
        stored = None if content is None else StoredFile(content, lfs=True)
        if stored is None and hub.xet_folder is not None:
            stored = find_file(hub.xet_folder, value["oid"], value["size"])
        if stored is None:
            return f"the LFS object {value['oid']} of {path} was not uploaded"
        changes[path] = stored
    elif key in ("deletedFile", "deletedFolder"):
        deleted.append(path.rstrip("/") + "/" if key == "deletedFolder" else path)
    else:
        return f"unknown line {key!r}"
    return None


def create_branch(hub, request, repository, branch):
    start = repository.at(request.json().get("startingPoint", "main"))
    if start is None:
        return refuse(404, "Invalid starting point", "RevisionNotFound")
    if branch in repository.branches:
        return refuse(409, f"Reference already exists: {branch}")
    repository.branches[branch] = start
    return json_answer({"success": True})


def create_tag(hub, request, repository, revision, tip):
    tag = request.json()["tag"]
    if tag in repository.tags:
        return refuse(409, f"Reference already exists: {tag}")
    repository.tags[tag] = tip
    return json_answer({"success": True})

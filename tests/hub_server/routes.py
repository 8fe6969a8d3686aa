"""Which address of the hub is answered by what, and who may call it."""

import re
from urllib.parse import unquote

from hub_server import publishing, reading, xet
from hub_server.http_service import Answer, refuse

API = r"/api/(?P<kind>models|datasets)/(?P<name>[\w.-]+(?:/[\w.-]+)?)"
REVISION = r"/(?P<revision>[^/]+)"
FILES = r"(?P<kind>/datasets)?/(?P<name>[\w.-]+(?:/[\w.-]+)?)"

# Method, address, who may call it ("anyone", or somebody who can "read" or "write" the repository), and the answer.
ROUTES = [
    ("GET", r"/api/whoami-v2", "anyone", reading.whoami),
    ("POST", r"/api/validate-yaml", "anyone", publishing.validate_card),
    ("POST", r"/api/repos/create", "anyone", publishing.create_repository),
    ("POST", r"/api/complete-multipart/(?P<oid>\w+)", "anyone", publishing.complete_multipart),
    ("POST", API + "/preupload" + REVISION, "write", publishing.preupload),
    ("POST", FILES + r"\.git/info/lfs/objects/batch", "write", publishing.lfs_batch),
    ("POST", FILES + r"\.git/info/lfs/objects/verify", "write", publishing.lfs_verify),
    ("POST", API + "/commit" + REVISION, "write", publishing.commit),
    ("POST", API + r"/branch/(?P<branch>[^/]+)", "write", publishing.create_branch),
    ("POST", API + "/tag" + REVISION, "write", publishing.create_tag),
    ("GET", API + "/tree" + REVISION + r"(?:/(?P<folder>.+))?", "read", reading.tree),
    ("POST", API + "/paths-info" + REVISION, "read", reading.paths_info),
    ("GET", API + "/commits" + REVISION, "read", reading.commits),
    ("GET", API + "/refs", "read", reading.refs),
    ("GET", API + "/xet-read-token" + REVISION, "read", xet.token),
    ("GET", API + "/xet-write-token" + REVISION, "write", xet.token),
    ("GET", API + "/revision" + REVISION, "read", reading.info),
    ("GET", API, "read", reading.info),
    ("GET", FILES + "/resolve" + REVISION + "/(?P<path>.+)", "read", reading.resolve),
]
ROUTES = [(method, re.compile(pattern), access, function) for method, pattern, access, function in ROUTES]


def answer(hub, request):
    """Answer a call to the hub."""
    if request.token is not None and request.token not in hub.tokens:
        return refuse(401, "Invalid credentials in Authorization header")
    method = "GET" if request.method == "HEAD" else request.method
    for wanted, pattern, access, function in ROUTES:
        found = pattern.fullmatch(request.path)
        if found is not None and wanted == method:
            named = {key: text and unquote(text) for key, text in found.groupdict().items()}
            if access == "anyone":
                return function(hub, request, **named)
            return _of_repository(hub, request, access, function, **named)
    return Answer(404, b"", known=False)


def _of_repository(hub, request, access, function, kind, name, **named):
    """Answer where the repository exists, may be seen, and may be changed if that is what is asked."""
    kind = (kind or "models").removeprefix("/")
    repository = hub.repositories.get((kind, name))
    if request.token is None and (repository is None or repository.private or access == "write"):
        return refuse(401, "Invalid username or password.", "RepoNotFound")
    if repository is None:
        return refuse(404, "Repository not found", "RepoNotFound")
    if access == "write":
        wrong = publishing.refusal_to_write(hub, request, name)
        if wrong is not None:
            return wrong
    if "revision" in named:
        named["tip"] = repository.at(named["revision"])
        if named["tip"] is None:
            return refuse(404, f"Invalid rev id: {named['revision']}", "RevisionNotFound")
    return function(hub, request, repository, **named)

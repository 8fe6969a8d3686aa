"""Whether a token may write to a repository on the Hub: asked before work is done, not after."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token

# A call that does not come through raises what the HTTP library of the day raises (huggingface_hub changes it), a
# RuntimeError, or an error of the Hub: so `Exception` is caught around such calls, and nothing else is in them.
_WRITE_ROLES = ("write", "admin", "contributor")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class PublishingError(RuntimeError):
    """A model cannot be, or was not, published; the text says why, what is safe, and what to do."""


def check_write_access(repo_id: str, token: str | None, remedy: str) -> None:
    """Ask the Hub whether the token may write to a repository.

    Args:
        repo_id: `user/name`, or `name` for a repository of the token's owner.
        token: the token; None: the one that the user is logged in with.
        remedy: what else the user can do; it ends each message.

    Raises:
        PublishingError: no token, a token that is refused or may only read, somebody else's name space, or a Hub that
            does not answer.
    """
    token = token or get_token()
    if token is None:
        raise PublishingError(
            f"There is no token to push to {repo_id} with; run `hf auth login` or set HF_TOKEN (a training takes "
            f"`hub_token`, too); {remedy}"
        )
    try:
        who = HfApi().whoami(token=token)
    except Exception as error:
        status = status_of(error)
        if status in (401, 403):
            raise PublishingError(
                f"The Hub refuses the token for {repo_id} ({short(error)}); make a new one with the role 'write' at "
                f"{endpoint()}/settings/tokens; {remedy}"
            ) from error
        raise PublishingError(
            f"The Hub at {endpoint()} cannot be asked about {repo_id} ({short(error)}); try again later; {remedy}"
        ) from error
    _check_role(who, repo_id, remedy)
    _check_namespace(who, repo_id, remedy)


def make_repository(repo_id: str, token: str | None, private: bool | None, remedy: str) -> str:
    """Make a repository where there is none, and return its full name.

    Raises:
        PublishingError: the Hub does not let the token do that.
    """
    try:
        return str(HfApi().create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id)
    except Exception as error:
        raise PublishingError(
            f"The repository {repo_id} cannot be made on the Hub ({short(error)}); give the name of one that the token "
            f"may write to; {remedy}"
        ) from error


def make_branch(repo_id: str, token: str | None, revision: str | None, remedy: str) -> None:
    """Make a branch where there is none; None, a commit or a pull request's reference need none.

    Raises:
        PublishingError: the Hub does not let the token do that.
    """
    if revision is None or revision.startswith("refs/") or _COMMIT.fullmatch(revision):
        return
    try:
        HfApi().create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    except Exception as error:
        raise PublishingError(
            f"The branch {revision} of {repo_id} cannot be made on the Hub ({short(error)}); give another revision; "
            f"{remedy}"
        ) from error


def endpoint() -> str:
    """Return the address of the Hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def short(error: BaseException) -> str:
    """Return an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    text = " ".join(lines[:3]) or type(error).__name__
    if status_of(error) is None and cause is not None and str(cause) and str(cause) not in text:
        text += f" – {short(cause)}"
    name = type(error).__name__ if status_of(error) is None else f"HTTP status {status_of(error)}"
    return text if name in text or isinstance(error, PublishingError) else f"{name}: {text}"


def later_command(folder: str | Path, repo_id: str, private: bool | None = None, revision: str | None = None) -> str:
    """Return the command that publishes a folder."""
    words = ["python -m hf_amp.push", _quoted(str(folder)), "--repo", repo_id]
    if private:
        words.append("--private")
    if revision:
        words += ["--revision", revision]
    return " ".join(words)


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w./\\:~+-]+", path) else f'"{path}"'


def _check_role(who: dict[str, Any], repo_id: str, remedy: str) -> None:
    token = who.get("auth", {}).get("accessToken", {})
    role = token.get("role")
    allowed = role != "read"
    if role == "fineGrained":
        allowed = _is_in_scope(token.get("fineGrained", {}), _namespace(who, repo_id), repo_id)
    if not allowed:
        raise PublishingError(
            f"The token {token.get('displayName', '')!r} of {who.get('name')} may not write to {repo_id} (its role is "
            f"{role!r}); make one with the role 'write' at {endpoint()}/settings/tokens; {remedy}"
        )


def _is_in_scope(scopes: dict[str, Any], namespace: str, repo_id: str) -> bool:
    """Whether a fine-grained token may write to the repository, or to all those of its owner."""
    full = repo_id if "/" in repo_id else f"{namespace}/{repo_id}"
    if "repo.write" in scopes.get("global", []):
        return True
    return any(
        "repo.write" in scope.get("permissions", []) and scope.get("entity", {}).get("name") in (namespace, full)
        for scope in scopes.get("scoped", [])
    )


def _check_namespace(who: dict[str, Any], repo_id: str, remedy: str) -> None:
    namespace = _namespace(who, repo_id)
    roles = {one.get("name"): one.get("roleInOrg", "write") for one in who.get("orgs", [])}
    if namespace == who.get("name") or roles.get(namespace) in _WRITE_ROLES:
        return
    reason = f"may only {roles[namespace]} there" if namespace in roles else "is no member of it"
    raise PublishingError(
        f"{repo_id} belongs to {namespace}, and {who.get('name')}, the owner of the token, {reason}; give a "
        f"`hub_model_id` such as {who.get('name')}/{repo_id.split('/')[-1]}; {remedy}"
    )


def _namespace(who: dict[str, Any], repo_id: str) -> str:
    return repo_id.split("/")[0] if "/" in repo_id else str(who.get("name"))

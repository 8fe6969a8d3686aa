"""Whether a token may write: by its role, its scope and the name space."""

import pytest

from hf_amp.hub import access as hub_access
from hf_amp.hub.access import PublishingError, check_write_access, later_command, make_branch, short


def owner(monkeypatch, role="write", orgs=(), **access):
    """The tokens whose owner was asked for."""
    asked = []
    who = {"name": "me", "orgs": list(orgs), "auth": {"accessToken": {"displayName": "mine", "role": role, **access}}}

    class Api:
        def whoami(self, token):
            asked.append(token)
            return who

    monkeypatch.setattr(hub_access, "HfApi", Api)
    return asked


def scope(name, *permissions):
    return {"scoped": [{"entity": {"type": "user", "name": name}, "permissions": list(permissions)}]}


ORG = [{"name": "lab", "roleInOrg": "write"}, {"name": "club", "roleInOrg": "read"}]


@pytest.mark.parametrize(
    ("repo_id", "role", "access"),
    [
        ("me/model", "write", {}),
        ("model", "write", {}),
        ("lab/model", "write", {}),
        ("lab/model", "admin", {}),
        ("me/model", "fineGrained", {"fineGrained": scope("me", "repo.write")}),
        ("model", "fineGrained", {"fineGrained": scope("me", "repo.write")}),
        ("me/model", "fineGrained", {"fineGrained": scope("me/model", "repo.content.read", "repo.write")}),
        ("lab/model", "fineGrained", {"fineGrained": scope("lab", "repo.write")}),
        ("me/model", "fineGrained", {"fineGrained": {"global": ["repo.write"]}}),
    ],
)
def test_who_may_write(monkeypatch, repo_id, role, access):
    asked = owner(monkeypatch, role, ORG, **access)
    check_write_access(repo_id, "hf_given", "or not")
    assert asked == ["hf_given"]


@pytest.mark.parametrize(
    ("repo_id", "role", "access", "said"),
    [
        ("me/model", "read", {}, "may not write to me/model .*role is 'read'"),
        ("me/model", "fineGrained", {"fineGrained": scope("me", "repo.content.read")}, "role is 'fineGrained'"),
        ("me/model", "fineGrained", {"fineGrained": scope("me/other", "repo.write")}, "role is 'fineGrained'"),
        ("me/model", "fineGrained", {}, "role is 'fineGrained'"),
        ("else/model", "write", {}, "belongs to else, and me, the owner of the token, is no member.*me/model"),
        ("club/model", "write", {}, "may only read there"),
    ],
)
def test_who_may_not(monkeypatch, repo_id, role, access, said):
    owner(monkeypatch, role, ORG, **access)
    with pytest.raises(PublishingError, match=rf"{said}.*; or not$"):
        check_write_access(repo_id, "hf_given", "or not")


@pytest.mark.parametrize("revision", [None, "refs/pr/1", "0" * 40])
def test_no_branch_is_made_for_what_is_none(monkeypatch, revision):
    made = []

    class Api:
        def create_branch(self, repo_id, branch, **kwargs):
            made.append(branch)

    monkeypatch.setattr(hub_access, "HfApi", Api)
    make_branch("me/model", None, revision, "")
    assert made == []
    make_branch("me/model", None, "trial", "")
    assert made == ["trial"]


def test_the_command_for_later_can_be_typed_as_it_stands():
    assert later_command("out/x", "me/m") == "python -m hf_amp.push out/x --repo me/m"
    assert later_command("my out", "me/m", True, "trial") == (
        'python -m hf_amp.push "my out" --repo me/m --private --revision trial'
    )


def test_errors_in_one_line_with_their_cause():
    error = RuntimeError("closed\n\nfor ever")
    error.__cause__ = OSError("refused")
    assert short(error) == "RuntimeError: closed for ever – OSError: refused"
    assert short(ValueError()) == "ValueError"

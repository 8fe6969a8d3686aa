"""`python -m hf_amp.push`: what it lists, what it refuses, and what it uploads."""

import json
import re
import subprocess
import sys

import pytest
import torch
from hub_server import READ_TOKEN, WRITE_TOKEN, client_environment
from safetensors.torch import save_file

from hf_amp.hub.access import PublishingError
from hf_amp.hub.card import CardFacts, is_untouched, render_card
from hf_amp.push import check_tokens, files_to_publish, main

pytest_plugins = ["hub_server.fixture"]
TOKEN = "hf_" + "aB3" * 12
FACTS = CardFacts(
    model_name="tiny",
    repo_id="out",
    summary="A tiny model.",
    method="Not at all.",
    usage='model = load("out")  # not "outside"',
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a training leaves it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    out = tmp_path / "out"
    (out / "best").mkdir(parents=True)
    for place in (out, out / "best"):
        save_file({"weight": torch.zeros(300)}, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    for state in ("checkpoint-5", "last-checkpoint"):
        (out / state).mkdir()
        (out / state / "optimizer.pt").write_bytes(b"state")
    (out / "_hidden.txt").write_text("for me")
    (out / ".cache").mkdir()
    (out / ".cache" / "x").write_text(TOKEN)
    (out / "empty.txt").write_text("")
    (out / "a [1]*.txt").write_text("an odd name")
    (out / "README.md").write_text(render_card(FACTS))
    return out


def push(hub, home, *words, token=WRITE_TOKEN):
    command = [sys.executable, "-m", "hf_amp.push", *map(str, words)]
    environment = client_environment(hub, home, token)
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)


UPLOADED = {"README.md", "a [1]*.txt", "best/config.json", "best/model.safetensors", "config.json", "empty.txt"}
UPLOADED |= {"model.safetensors"}


def test_dry_run_lists_files_and_sizes_and_touches_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr("hf_amp.push.HfApi", None)  # no call can be made
    card = (folder / "README.md").read_text()
    main([str(folder), "--repo", "tester/tiny", "--dry-run"])
    said = capsys.readouterr().out
    assert set(re.findall(r"^ *[\d.]+ k?B  (?!in )(.+)$", said, re.MULTILINE)) == UPLOADED
    assert f"{(folder / 'model.safetensors').stat().st_size / 1000:.1f} kB  model.safetensors" in said
    assert "in 7 files to tester/tiny" in said
    assert "Left out: .cache, _hidden.txt, checkpoint-5, last-checkpoint" in said
    assert (folder / "README.md").read_text() == card


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--repo", "bad name/x y"), "`--repo` cannot be 'bad name/x y'"),
        (("--repo", "a/b/c"), "`--repo` cannot be 'a/b/c'"),
        (("--repo", ""), "`--repo` cannot be ''"),
        (("--repo", "tester/tiny", "--revision", "b ad"), "`--revision` cannot be 'b ad'; give a branch such as main"),
    ],
)
def test_names_that_the_hub_cannot_have_are_refused_by_a_dry_run(folder, words, text):
    with pytest.raises(SystemExit, match=re.escape(text)):
        main([str(folder), *words, "--dry-run"])


def test_a_folder_without_card_is_said_to_have_none(folder, capsys):
    (folder / "README.md").unlink()
    main([str(folder), "--repo", "tester/tiny", "--dry-run"])
    assert "There is no README.md" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state_1.pth", "best/scheduler.pt"])
def test_training_state_of_a_checkpoint_is_refused(folder, name):
    (folder / name).write_bytes(b"state")
    with pytest.raises(SystemExit, match=r"training state of a checkpoint .*give the folder above it"):
        main([str(folder), "--repo", "tester/tiny", "--dry-run"])


@pytest.mark.parametrize(
    "content", [TOKEN.encode(), b'{"token": "' + TOKEN.encode() + b'"}', b"\x80\x00" + b"X " + b"api_org_" + b"q" * 34]
)
def test_a_token_in_any_file_is_refused_and_not_shown(folder, content):
    (folder / "best" / "training_args.bin").write_bytes(content)
    with pytest.raises(PublishingError, match=r"token of the Hub in best/training_args.bin.*revoke") as error:
        check_tokens(folder, files_to_publish(folder))
    assert TOKEN not in str(error.value)


def test_the_users_own_token_is_found_whatever_it_looks_like(folder, monkeypatch):
    (folder / "notes.txt").write_text("my word is swordfish")
    assert check_tokens(folder, files_to_publish(folder)) == []
    monkeypatch.setenv("HF_TOKEN", "swordfish")
    with pytest.raises(PublishingError, match=r"token of the Hub in notes\.txt"):
        check_tokens(folder, files_to_publish(folder))


def test_folders_without_model_are_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"must be a folder, got .*nowhere"):
        main([str(tmp_path / "nowhere"), "--repo", "tester/tiny"])
    above = tmp_path / "above"
    above.mkdir()
    folder.rename(above / "seed_42")
    with pytest.raises(SystemExit, match=r"holds no model \(no config.json in it\); .*seed_42"):
        main([str(above), "--repo", "tester/tiny"])
    (above / "seed_42" / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"holds no model \(no weights in it\)"):
        main([str(above / "seed_42"), "--repo", "tester/tiny"])


@pytest.mark.parametrize(
    "metadata",
    ["model-index:\n- name: x\n  results:\n  - metrics:\n    - value: 1\n", "tags: [a\n"],
)
def test_a_card_that_the_hub_would_refuse_is_refused_here(folder, metadata):
    (folder / "README.md").write_text(f"---\n{metadata}---\n# x\n")
    with pytest.raises(SystemExit, match=r"metadata of .*README.md is not valid"):
        main([str(folder), "--repo", "tester/tiny", "--dry-run"])


def test_nothing_is_asked_in_offline_mode(folder, monkeypatch):
    monkeypatch.setattr("hf_amp.push.is_offline_mode", lambda: True)
    monkeypatch.setattr("hf_amp.push.HfApi", None)
    with pytest.raises(SystemExit, match="offline mode is on; unset HF_HUB_OFFLINE"):
        main([str(folder), "--repo", "tester/tiny"])


@pytest.mark.slow
def test_upload_of_what_was_listed_and_a_card_that_loads_from_there(hub, folder):
    home = folder.parent
    done = push(hub, home, "out", "--repo", "tester/tiny", "--private")
    assert done.returncode == 0, done.stderr
    assert f"Published: {hub.url}/tester/tiny" in done.stdout
    assert hub.repositories["models", "tester/tiny"].private
    pushed = hub.files("tester/tiny")
    assert set(pushed) - {".gitattributes"} == UPLOADED
    assert all(pushed[name] == (folder / name).read_bytes() for name in UPLOADED)
    card = pushed["README.md"].decode()
    assert 'load("tester/tiny")  # not "outside"' in card
    assert is_untouched(card)

    branch = push(hub, home, "out", "--repo", "tester/tiny", "--revision", "trial")
    assert branch.returncode == 0, branch.stderr
    assert set(hub.files("tester/tiny", "trial")) >= UPLOADED
    own = push(hub, home, "out", "--repo", "plain")
    assert own.returncode == 0, own.stderr
    assert 'load("tester/plain")' in hub.files("tester/plain")["README.md"].decode()

    hub.add("tester/open", {"a.txt": b"a"})
    public = push(hub, home, "out", "--repo", "tester/open", "--private")
    assert public.returncode == 1
    assert "tester/open exists already and is public" in public.stderr
    assert "config.json" not in hub.files("tester/open")
    assert all(call.known for call in hub.calls)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "There is no token to push to tester/tiny"),
        ("hf_wrong", "The Hub refuses the token"),
        (READ_TOKEN, "may not write to tester/tiny"),
    ],
)
def test_tokens_that_cannot_push_are_named_in_one_line(hub, folder, token, said):
    done = push(hub, folder.parent, "out", "--repo", "tester/tiny", token=token)
    assert done.returncode == 1
    assert said in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert ("models", "tester/tiny") not in hub.repositories


@pytest.mark.slow
def test_the_same_command_completes_what_failed(hub, folder):
    hub.fail("/tester/tiny/commit/", status=503)
    failed = push(hub, folder.parent, "out", "--repo", "tester/tiny")
    assert failed.returncode == 1
    assert "The push to tester/tiny failed: HTTP status 503" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert push(hub, folder.parent, "out", "--repo", "tester/tiny").returncode == 0
    assert set(hub.files("tester/tiny")) >= UPLOADED

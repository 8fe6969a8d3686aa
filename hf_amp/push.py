"""Publish a finished folder on the Hub: `python -m hf_amp.push OUTPUT_DIR --repo user/name`.

Uploads what `push_to_hub` of the Trainer would: weights, configuration, processor, modelling code, card, figures and
results; not the checkpoints in it. Nothing is uploaded if the folder holds no model, weights that are empty, cut short
or lack a shard, a token in any file or archive, or a checkpoint's optimizer state. Log in with `hf auth login`, or set
HF_TOKEN. Try `--dry-run` first.
"""

import argparse
import fnmatch
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, get_token, is_offline_mode
from huggingface_hub.utils import validate_repo_id

from hf_amp.files import write_whole
from hf_amp.hub.access import PublishingError, check_write_access, endpoint, make_branch, make_repository, short
from hf_amp.hub.card import CARD_NAME, moved_to, read_card
from hf_amp.hub.upload.tokens import TokenSearch
from hf_amp.hub.upload.weights import flaws_of_weights

# The same as the Trainer leaves out, and what is nobody's business.
LEFT_OUT = ("_*", "checkpoint-*", "last-checkpoint", ".git", ".cache", ".*", "__pycache__", "*.lock")
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
CONFIGURATIONS = ("config.json", "adapter_config.json")
TRAINING_STATES = ("optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth")
_NO_BRANCH = re.compile(r"[\s~^:?*\[\\]|\.\.|^[-/]|/$|\.lock$")  # as git has it
_REMEDY = "then run the same command again"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 and a message if nothing was published."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_amp.push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", type=Path, help="Folder of a trained model.")
    parser.add_argument("--repo", required=True, help="Where to: user/name, or name for your own.")
    parser.add_argument("--private", action="store_true", help="Make the repository private.")
    parser.add_argument("--revision", help="Branch to push to; it is made where there is none.")
    parser.add_argument("--dry-run", action="store_true", help="List files and sizes, check the card, upload nothing.")
    args = parser.parse_args(argv)
    try:
        publish(args.output_dir, args.repo, args.private, args.revision, args.dry_run)
    except PublishingError as error:
        sys.exit(f"error: {error}")


def publish(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> None:
    """Check a folder, say what is uploaded, and upload it in one commit.

    Args:
        folder: a trained model's folder.
        repo_id: `user/name`, or `name` for a repository of the token's owner.
        private: make the repository private.
        revision: branch; None: the main one.
        dry_run: only say what would be done.

    Raises:
        PublishingError: the folder must not be published, or the Hub did not take it.
    """
    check_names(repo_id, revision)
    files = files_to_publish(folder)
    unread = check_tokens(folder, files)
    card = check_card(folder)
    _list(folder, files, repo_id)
    for name, reason in unread:
        print(f"Not looked into for tokens: {name} ({reason})", flush=True)
    if card is None:
        print(f"There is no {CARD_NAME}: nobody will know how the model was made.", flush=True)
    if dry_run:
        return
    if is_offline_mode():
        raise PublishingError("offline mode is on; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, " + _REMEDY)
    check_write_access(repo_id, get_token(), _REMEDY)
    full = make_repository(repo_id, get_token(), private or None, _REMEDY)
    _refuse_public(full, private)
    make_branch(full, get_token(), revision, _REMEDY)
    if card is not None and (moved := moved_to(card, full)) != card:
        write_whole(folder / CARD_NAME, moved.encode())
        print(f"{CARD_NAME} now says how to load the model from {full}", flush=True)
    try:
        HfApi().upload_folder(
            repo_id=full,
            folder_path=folder,
            allow_patterns=[_escaped(path.relative_to(folder).as_posix()) for path in files],
            commit_message="Upload model",
            revision=revision,
        )
    except Exception as error:
        raise PublishingError(
            f"The push to {full} failed: {short(error)}. Nothing in {folder} was lost; run the same command again"
        ) from error
    print(f"Published: {endpoint()}/{full}" + (f"/tree/{revision}" if revision else ""))


def check_names(repo_id: str, revision: str | None) -> None:
    """Check the names of repository and branch before anything else.

    Raises:
        PublishingError: the Hub cannot have such names.
    """
    try:
        validate_repo_id(repo_id)
    except ValueError as error:
        raise PublishingError(f"`--repo` cannot be {repo_id!r} ({short(error)}); give user/name, or name") from error
    if revision is not None and (not revision or _NO_BRANCH.search(revision)):
        raise PublishingError(f"`--revision` cannot be {revision!r}; give a branch such as main, without spaces")


def files_to_publish(folder: Path) -> list[Path]:
    """Return the files that are uploaded, sorted.

    Raises:
        PublishingError: no such folder, no model in it, a checkpoint's training state, or weights that are not whole.
    """
    if not folder.is_dir():
        raise PublishingError(f"`OUTPUT_DIR` must be a folder, got {folder}; give the output_dir of a training")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_left_out(path.relative_to(folder)))
    names = {path.name for path in files if path.parent == folder}
    if not names & set(WEIGHTS) or not names & set(CONFIGURATIONS):
        missing = "no weights" if names & set(CONFIGURATIONS) else "no config.json"
        raise PublishingError(
            f"{folder} holds no model ({missing} in it); give the folder that `save_model` wrote, such as "
            f"{_folder_with_model(folder) or 'the output_dir of a training'}"
        )
    states = [path for path in files if any(fnmatch.fnmatch(path.name, pattern) for pattern in TRAINING_STATES)]
    if states:
        raise PublishingError(
            f"{folder} holds the training state of a checkpoint ({', '.join(sorted(path.name for path in states))}), "
            "which is several times the model's size and of no use to others; give the folder above it, or move these "
            "files away"
        )
    flaws = [f"{path.relative_to(folder).as_posix()}: {flaw}" for path, flaw in flaws_of_weights(files)]
    if flaws:
        raise PublishingError(
            f"The weights in {folder} are not whole: {'; '.join(flaws)}. Save the model or copy its folder again, "
            f"{_REMEDY}"
        )
    return files


def check_tokens(folder: Path, files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return the files that cannot be searched for tokens, and why.

    Raises:
        PublishingError: there is a token in a file, or in an archive.
    """
    search = TokenSearch(get_token())
    for path in files:
        search.look_into(path, path.relative_to(folder).as_posix())
    if search.found:
        raise PublishingError(
            f"There is a token of the Hub in {', '.join(search.found)}, for all to read; delete or clean the file, "
            f"revoke the token at {endpoint()}/settings/tokens if others have seen it, {_REMEDY}"
        )
    return search.unread


def check_card(folder: Path) -> str | None:
    """Return the text of the folder's card, None where there is none.

    Raises:
        PublishingError: it is not UTF-8, or the Hub would refuse its metadata.
    """
    path = folder / CARD_NAME
    if not path.is_file():
        return None
    text = read_card(path)
    try:
        ModelCard(text)
    except Exception as error:  # YAML errors, type errors and value errors of any metadata that users write
        raise PublishingError(f"The metadata of {path} is not valid ({short(error)}); correct it, {_REMEDY}") from error
    return text


def _list(folder: Path, files: Sequence[Path], repo_id: str) -> None:
    for path in files:
        print(f"{_size(path.stat().st_size):>10}  {path.relative_to(folder).as_posix()}")
    left_out = sorted(path.name for path in folder.iterdir() if _is_left_out(path.relative_to(folder)))
    print(f"{_size(sum(path.stat().st_size for path in files)):>10}  in {len(files)} files to {repo_id}", flush=True)
    print(f"Left out: {', '.join(left_out) or 'nothing'}", flush=True)


def _refuse_public(repo_id: str, private: bool) -> None:
    if private and not HfApi().model_info(repo_id).private:
        raise PublishingError(
            f"`--private` was given, but {repo_id} exists already and is public; give a new name, make it private at "
            f"{endpoint()}/{repo_id}/settings, or leave --private out"
        )


def _is_left_out(path: Path) -> bool:
    return any(fnmatch.fnmatch(part, pattern) for part in path.parts for pattern in LEFT_OUT)


def _folder_with_model(folder: Path) -> Path | None:
    found = (path.parent for path in sorted(folder.glob("*/config.json")) if not _is_left_out(path.relative_to(folder)))
    return next(found, None)


def _escaped(name: str) -> str:
    """A pattern that matches this one name: brackets and stars mean something to `upload_folder`."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _size(count: int) -> str:
    """Return a number of bytes in words."""
    power = min(3, max(0, (len(str(count)) - 1) // 3))
    unit = ("B", "kB", "MB", "GB")[power]
    return f"{count / 1000**power:,.1f} {unit}" if power else f"{count} B"


if __name__ == "__main__":
    main()

"""What the user asked for, as a card tells it: command and arguments, without secrets and places of the machine."""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_amp.hub.text.places import without_places

# Folders, secrets, and what differs from process to process.
_PRIVATE = ("output_dir", "logging_dir", "resume_from_checkpoint", "hub_token", "push_to_hub_token", "local_rank")
# `do_eval` follows from `eval_strategy`.
_DERIVED = ("do_eval",)
# Parts of `accelerator_config` that are true unless the user says otherwise.
_FULL_FORMS = {"even_batches": True, "use_seedable_sampler": True}
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}")
_SECRET_FLAGS = ("hub_token", "push_to_hub_token", "hf_token", "token")


def changed_arguments(args: Any) -> dict[str, Any]:
    """Return the training arguments that differ from their defaults, without the perturbation's, secrets and places.

    Those of `TrainingArguments` count, also for a class that has other ones: readers know no others.
    """
    changed, known = {}, {one.name: one for one in fields(TrainingArguments)}
    for one in (known.get(one.name, one) for one in fields(args)):
        if one.name.startswith("amp_") or one.name in (*_PRIVATE, *_DERIVED) or not one.init:
            continue
        default = one.default if one.default is not MISSING else None
        if one.default_factory is not MISSING:
            default = one.default_factory()
        value = plain_value(getattr(args, one.name))
        if isinstance(value, dict):  # brought into its full form as soon as the arguments are made
            value = {name: part for name, part in value.items() if (part or False) != _FULL_FORMS.get(name, False)}
        if value != plain_value(default) and (value or default not in (None, "", "none", "0")):
            changed[one.name] = value
    return changed


def command_line() -> str | None:
    """Return the command of this process, without tokens and folders of its machine; None where it was no script."""
    script, *words = sys.argv or [""]
    if not script.endswith(".py") and "python" not in Path(script).name and not Path(script).is_file():
        return None
    if Path(script).name in ("ipykernel_launcher.py", "colab_kernel_launcher.py") or "pytest" in script:
        return None
    kept, is_secret = [], False
    for word in words:
        name, has_value, value = word.partition("=")
        if is_secret or name.lstrip("-").replace("-", "_") in _SECRET_FLAGS:
            is_secret = not is_secret and not has_value
            continue
        word = f"{name}={without_places(value)}" if has_value else without_places(word)
        kept.append(_TOKEN.sub("…", word))
    path = Path(script)
    if path.is_absolute():
        path = Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else Path(path.name)
    return shlex.join(["python", path.as_posix(), *kept])


def plain_value(value: Any) -> Any:
    """Return a training argument as a JSON value."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain_value(one) for one in value]
    if callable(getattr(value, "to_dict", None)):
        return plain_value(value.to_dict())
    return str(value)

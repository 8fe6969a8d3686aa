"""Flags and YAML recipes of the image-classification commands."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_amp.vision.arguments import DataArguments, ImageTrainingArguments, ModelArguments
from hf_amp.vision.methods import METHOD_FIELDS, METHODS

logger = logging.get_logger(__name__)

CONFIG_FLAG = "--config"
_CLASSES: list[Any] = [ModelArguments, DataArguments, ImageTrainingArguments]


class _Parser(HfArgumentParser):
    """Gives the error in one line: the usage of 150 flags would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (all flags: {self.prog} --help)\n")


def parse_command_line(
    argv: Sequence[str], description: str | None = None
) -> tuple[ModelArguments, DataArguments, ImageTrainingArguments]:
    """Return the settings that flags and a `--config` recipe give; a flag overrides the recipe.

    Args:
        argv: the words after the program's name.
        description: for `--help`.

    Raises:
        ValueError: a recipe that cannot be read, an unknown key or flag, or a value that is refused.
        SystemExit: a value of the wrong type, or `--help`.
    """
    parser = _Parser(_CLASSES, description=description, allow_abbrev=False)
    parser.add_argument(CONFIG_FLAG, help="YAML recipe; flags on the command line override it.")
    words = expand_config(argv, known_names())
    parsed: tuple[Any, ...] = parser.parse_args_into_dataclasses(
        words, look_for_args_file=False, return_remaining_strings=True
    )
    model, data, training = parsed[:3]
    if parsed[-1]:
        name = parsed[-1][0].lstrip("-").partition("=")[0]
        raise ValueError(f"{parsed[-1][0]!r} is not a flag; {_hint(name, known_names())}")
    if "output_dir" not in given_names(words):
        training.output_dir = default_output_dir(model, data, training)
    return model, data, training


def warn_of_unused_flags(argv: Iterable[str], training: ImageTrainingArguments) -> None:
    """Warn of settings in `argv` that the method does not read."""
    unused = given_names(argv) & set(METHOD_FIELDS) - set(METHODS[training.method].fields)
    for name in sorted(unused):
        logger.warning(f"--{name} has no effect with --method {training.method}, which does not read it.")


def known_names(extra: Iterable[str] = ()) -> set[str]:
    """Return the names that a recipe may hold."""
    return {f.name for cls in _CLASSES for f in fields(cls) if f.init} | set(extra)


def expand_config(argv: Sequence[str], known: set[str]) -> list[str]:
    """Return `argv` with the recipe of `--config` written out as flags in front of the others.

    Args:
        argv: the words of the command line.
        known: names that a recipe may hold.

    Raises:
        ValueError: the recipe is missing, is not a YAML mapping, or holds an unknown key.
    """
    rest, path = [], None
    words = iter(argv)
    for word in words:
        flag, has_value, value = word.partition("=")
        if flag != CONFIG_FLAG:
            rest.append(word)
            continue
        path = value if has_value else next(words, None)
        if path is None:
            raise ValueError("`--config` must name a YAML file; write --config examples/recipes/<recipe>.yaml")
    if path is None:
        return rest
    flags = []
    for name, value in read_config(path, known).items():
        flags += _as_flag(name, value)
    return flags + rest


def read_config(path: str, known: set[str]) -> dict[str, Any]:
    """Return the settings of a recipe.

    Args:
        path: a YAML file.
        known: names that it may hold.

    Raises:
        ValueError: there is no such file, it is not a YAML mapping, or it holds an unknown key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"`--config` {path} cannot be read ({error.strerror}); the recipes are in examples/recipes"
        ) from error
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` {path} is not YAML ({error}); write one `name: value` per line") from error
    if not isinstance(settings, dict):
        raise ValueError(f"`--config` {path} must hold `name: value` lines, got {type(settings).__name__}")
    for name in settings:
        if name not in known:
            raise ValueError(f"`--config` {path} holds an unknown name {name!r}; {_hint(str(name), known)}")
    return settings


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else "see --help for the names"


def given_names(argv: Iterable[str]) -> set[str]:
    """Return the names of the flags in `argv`."""
    flags = (word.partition("=")[0] for word in argv if word.startswith("--"))
    return {flag[2:].replace("-", "_") for flag in flags}


def default_output_dir(model: ModelArguments, data: DataArguments, training: ImageTrainingArguments) -> str:
    """Return `outputs/<dataset>_<model>[_<augmentation>]_<method>[_noise<share>]`."""
    parts = [data.dataset, model.model]
    if data.augmentation not in ("vanilla", "none"):
        parts.append(str(data.augmentation))
    parts.append(training.method)
    if data.label_noise:
        parts.append(f"noise{data.label_noise:g}")
    return str(Path("outputs") / "_".join(part.replace("/", "-").strip("-.") for part in parts))


def _as_flag(name: str, value: Any) -> list[str]:
    """Return one setting as words of a command line; none for an empty one."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, bool):
        return [f"--{name}", str(value).lower()]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]

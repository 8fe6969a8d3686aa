"""Settings of the image-classification commands: from recipes, YAML files and flags to dataclasses."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.utils import logging

from hf_amp.vision.train.arguments import ImageTrainingArguments
from hf_amp.vision.train.images import DataArguments
from hf_amp.vision.train.methods import METHOD_FIELDS, METHODS
from hf_amp.vision.train.network import ModelArguments
from hf_amp.vision.train.recipes import recipe_list, recipe_settings

logger = logging.get_logger(__name__)

_CLASSES: tuple[Any, ...] = (ModelArguments, DataArguments, ImageTrainingArguments)
_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class Settings:
    """The settings that were given, by name; all others have their defaults.

    Args:
        given: name of a field → its value, of the field's type.
    """

    given: Mapping[str, Any]

    def replaced(self, **changes: Any) -> Settings:
        """Return the settings with some more, or with other values."""
        return Settings({**self.given, **changes})

    def without(self, *names: str) -> Settings:
        """Return the settings without some of them."""
        return Settings({name: value for name, value in self.given.items() if name not in names})

    def arguments(self) -> tuple[ModelArguments, DataArguments, ImageTrainingArguments]:
        """Return the dataclasses that the settings make.

        Raises:
            ValueError: a value is refused.
        """
        given = dict(self.given)
        if given.get("bf16") is False and not given.get("fp16"):  # switched off, which is not the same as left out
            given.setdefault("precision", "float32")
        if given.keys() & {"lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"}:
            given.setdefault("lr_schedule", "trainer")  # who names one means it
        own = [{f.name for f in fields(cls) if f.init} for cls in _CLASSES]
        made = [cls(**{k: v for k, v in given.items() if k in n}) for cls, n in zip(_CLASSES, own, strict=True)]
        model, data, training = made
        if "output_dir" not in self.given:
            training.output_dir = default_output_dir(model, data, training)
        return model, data, training

    def warn_of_unused(self) -> None:
        """Warn of settings that the method does not read."""
        method = self.given.get("method", ImageTrainingArguments.method)
        for name in sorted(self.given.keys() & set(METHOD_FIELDS) - set(METHODS[method].fields)):
            logger.warning(f"--{name} has no effect with --method {method}, which does not read it.")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The description in the lines that it was written in, and defaults."""


class _Parser(HfArgumentParser):
    """Gives the error in one line: the usage of 150 flags would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (all flags: {self.prog} --help)\n")


class _ListRecipes(argparse.Action):
    """Prints the recipes and ends the command."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        print(recipe_list())
        parser.exit()


def read_settings(
    argv: Sequence[str], own: argparse.ArgumentParser | None = None, description: str | None = None
) -> tuple[Settings, argparse.Namespace]:
    """Return the settings that a recipe, a file and flags give; flags override the file, the file the recipe.

    Args:
        argv: the words after the program's name.
        own: a command's further flags, which may stand in the file, too; those of the same name are its own.
        description: for `--help`.

    Returns:
        The settings, and what the command's own flags say, with the recipe's name as `recipe`.

    Raises:
        ValueError: a file that cannot be read, an unknown recipe, name or flag, or a value of the wrong type.
        SystemExit: a flag of the wrong type, `--help` or `--list_recipes`.
    """
    parser = _flags(description)
    own_names: set[str] = set() if own is None else {action.dest for action in own._actions}
    config_flag = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_flag.add_argument("--config", nargs="?", const="")
    file, words = config_flag.parse_known_args(argv)
    content = {} if file.config is None else read_config(file.config, _known_names() | own_names)
    options = argparse.Namespace()
    if own is not None:
        own.set_defaults(**{name: value for name, value in content.items() if name in own_names})
        options, words = own.parse_known_args(words)
    flags = argparse.Namespace(**dict.fromkeys((action.dest for action in parser._actions), _NOT_GIVEN))
    _, rest = parser.parse_known_args(words, flags)
    if rest:
        name = rest[0].lstrip("-").partition("=")[0]
        raise ValueError(f"{rest[0]!r} is not a flag; {_hint(name, _known_names() | own_names)}")
    given = typed({name: value for name, value in content.items() if name not in own_names and value is not None})
    given |= {name: value for name, value in vars(flags).items() if value is not _NOT_GIVEN}
    options.recipe = given.pop("recipe", None)
    published = {} if options.recipe is None else recipe_settings(options.recipe)
    return Settings({**published, **given}), options


def print_anywhere() -> None:
    """Print a question mark for what a terminal's encoding does not know, such as ε or ±, and do not end there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a YAML file, or written as text, with values of their fields' types.

    Raises:
        ValueError: an unknown name, or a value of another type.
    """
    actions = {action.dest: action for action in _flags()._actions}
    found = {}
    for name, value in settings.items():
        if name not in actions:
            raise ValueError(f"`{name}` is not a setting; {_hint(name, _known_names())}")
        many = actions[name].nargs in ("+", "*")
        parts = [_typed(actions[name], one) for one in (value if isinstance(value, (list, tuple)) else [value])]
        found[name] = parts if many else parts[0] if len(parts) == 1 else _refuse(name, value, "one value")
    return found


def _typed(action: argparse.Action, value: Any) -> Any:
    if isinstance(value, dict) or action.type is None:
        return value
    kind: Any = action.type
    is_flag = isinstance(action.const, bool)
    if isinstance(value, bool) != is_flag and not isinstance(value, str):
        _refuse(action.dest, value, "true or false" if is_flag else "no switch; write words such as no in quotes")
    try:
        made = kind(value if is_flag and isinstance(value, bool) else str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        _refuse(action.dest, value, getattr(kind, "__name__", "of its type"))
    if action.choices is not None and made not in action.choices:
        _refuse(action.dest, value, "one of " + ", ".join(map(str, action.choices)))
    return made


def _refuse(name: str, value: Any, rule: str) -> NoReturn:
    raise ValueError(f"`{name}` must be {rule}, got {value!r}; correct it")


def read_config(path: str, known: Iterable[str]) -> dict[str, Any]:
    """Return the settings of a YAML file.

    Args:
        path: of `name: value` lines.
        known: names that it may hold.

    Raises:
        ValueError: there is no such file, it is not a YAML mapping, or it holds an unknown name.
    """
    if not path:
        raise ValueError("`--config` must name a YAML file; write --config settings.yaml")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ValueError(
            f"`--config` {path} cannot be read ({reason}); give a YAML file, or a published row with --recipe NAME"
        ) from error
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"`--config` {path} is not YAML ({error}); write one `name: value` per line") from error
    if not isinstance(settings, dict):
        raise ValueError(f"`--config` {path} must hold `name: value` lines, got {type(settings).__name__}")
    known = set(known)
    for name in settings:
        if name not in known:
            raise ValueError(f"`--config` {path} holds an unknown name {name!r}; {_hint(str(name), known)}")
    return settings


def default_output_dir(model: ModelArguments, data: DataArguments, training: ImageTrainingArguments) -> str:
    """Return `outputs/<dataset>_<model>[_<augmentation>]_<method>[_noise<share>]`."""
    parts = [data.dataset, model.model]
    if data.augmentation not in ("vanilla", "none"):
        parts.append(str(data.augmentation))
    parts.append(training.method)
    if data.label_noise:
        parts.append(f"noise{data.label_noise:g}")
    return str(Path("outputs") / "_".join(part.replace("/", "-").strip("-.") for part in parts))


@cache
def _flags(description: str | None = None) -> _Parser:
    options = {"description": description, "formatter_class": HelpFormatter, "allow_abbrev": False}
    parser = _Parser(list(_CLASSES), **options)
    parser.add_argument("--config", help="YAML file of settings; flags on the command line override it.")
    parser.add_argument("--recipe", help="A row of the paper's tables, with its published settings.")
    parser.add_argument("--list_recipes", nargs=0, action=_ListRecipes, help="List the recipes and what they reached.")
    return parser


def _known_names() -> set[str]:
    return {f.name for cls in _CLASSES for f in fields(cls) if f.init} | {"recipe"}


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else "see --help for the names"

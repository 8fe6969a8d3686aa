"""Places on the author's machine: a published text gives their last name only."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# /x, ~/x, ~user/x, C:\x, \\server\x, ../x: also behind file://
_ROOT = r"(?:file://)?(?:/|~[\w.-]*[\\/]|[A-Za-z]:[\\/]|\\\\|(?:\.\.[\\/])+)"
_PLACE = re.compile(
    # An address of the web, of a bucket or of the Hub is no place on the machine and stays.
    r"(?P<address>\b(?!file:)[A-Za-z][\w+.-]+://[^\s\"'`]+)"
    # Between quotation marks a path may hold blanks.
    rf"|(?P<quote>[\"'`])(?P<quoted>{_ROOT}[^\"'`\n]*)(?P=quote)"
    rf"|(?<![\w.~/\\])(?P<bare>{_ROOT}[^\s\"'`,;:|()\[\]{{}}<>]+)"
)
# Folders that bear the user's name.
_OF_USER = re.compile(r"(?:(?:file://)?(?:/home|/Users|[A-Za-z]:[\\/]+Users)[\\/]+[^\\/]+|/root|~[\w.-]*)[\\/]*")


def without_places(value: Any) -> Any:
    """Return a value whose texts, also those in mappings, lists and tuples, give no path of this machine.

    An absolute path, or one that leaves the working directory, becomes its last name, and a user's own folder `~`.
    """
    if isinstance(value, str):
        return _last_name(value) if re.match(_ROOT, value) and Path(value).is_absolute() else _cleaned(value)
    if isinstance(value, Mapping):
        return {without_places(name): without_places(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_places(part) for part in value)
    return value


def _cleaned(text: str) -> str:
    text = _PLACE.sub(_replaced, text)
    # A letter before a path hides it from the pattern, as in -I/home/me: the places that are known are found there too.
    known = {str(place) for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))} - {"/"}
    names = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    return re.sub(rf"(?:{names})(?:[\\/][^\s\"'`]*)?(?![\w-])", lambda found: _last_name(found[0]), text)


def _replaced(found: re.Match[str]) -> str:
    if found["address"]:
        return found["address"]
    if found["quote"]:
        return found["quote"] + _last_name(found["quoted"]) + found["quote"]
    return _last_name(found["bare"])


def _last_name(path: str) -> str:
    if _OF_USER.fullmatch(path) or Path(path) == Path.home():
        return "~"
    return re.split(r"[\\/]+", path.rstrip("\\/"))[-1] or path

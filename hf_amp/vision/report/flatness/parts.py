"""What a flatness report has measured so far, on disk, and whether a folder's pictures may be replaced."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hf_amp.vision.report.results import read_json, write_json

REPORT_NAME = "flatness.json"
PARTS_NAME = "flatness_parts.json"


class Parts:
    """Measured parts of one report, kept in a file until the report is whole.

    Args:
        folder: of the report.
        settings: everything that changes a number; parts of other settings are dropped.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._path = folder / PARTS_NAME
        self._settings = as_read(settings)
        found = read_json(self._path) or {}
        self._parts: dict[str, Any] = found.get("parts", {}) if found.get("settings") == self._settings else {}

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return a part from the file, or measure it and write it there."""
        if name not in self._parts:
            # As it is read back, so that a report comes out alike whether or not it was interrupted.
            self._parts[name] = as_read(measure())
            write_json(self._path, {"settings": self._settings, "parts": self._parts})
        return self._parts[name]

    def discard(self) -> None:
        """Remove the file: the report has everything."""
        self._path.unlink(missing_ok=True)


def as_read(content: Any) -> Any:
    """Return `content` as `write_json` and `read_json` make it: numbers that are not finite become None."""
    return json.loads(json.dumps(content), parse_constant=lambda _: None)


def finished_report(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the report of the same settings that a folder holds, None if there is none.

    Args:
        folder: it may not exist yet.
        settings: everything that changes a number.
        overwrite: what other settings made may be replaced; it stays until the new report is whole.

    Raises:
        ValueError: the folder holds figures, or parts of them, of other or unknown settings, and `overwrite` is not
            set.
    """
    wanted = as_read(settings)
    report, parts = read_json(folder / REPORT_NAME), read_json(folder / PARTS_NAME)
    if report is not None and report.get("settings") == wanted:
        return report
    if overwrite:
        return None
    made = report or parts
    if made is not None and made.get("settings") != wanted:
        raise ValueError(
            f"`output_dir` {folder} holds flatness figures of other settings "
            f"({_differences(made.get('settings', {}), wanted)}); give --overwrite to replace "
            "them, or another --output_dir"
        )
    figures = sorted(path.name for path in folder.glob("flatness_*.png"))
    if figures and made is None:
        raise ValueError(
            f"`output_dir` {folder} holds {figures[0]} but no {REPORT_NAME}, so what made it is not known; give "
            "--overwrite to replace it, or another --output_dir"
        )
    return None


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    plain = [name for name in names if not isinstance(wanted[name], (dict, list))]
    listed = [f"{name}: {found.get(name)!r} there, {wanted[name]!r} now" for name in plain]
    if "subjects" in names:
        listed.append("other weights or images")
    return ", ".join(listed)

"""Whether the weights in a folder are whole: nothing is loaded, and nothing is unpickled."""

import fnmatch
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

# What `save_pretrained` and PEFT write with torch; `training_args.bin` holds no weights.
_TORCH_WEIGHTS = ("pytorch_model*.bin", "adapter_model*.bin")
_PICKLE = b"\x80"  # begins the files that torch wrote before it wrote zip archives


def flaws_of_weights(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each file of weights that is empty, cut short or lacks a part, and what is wrong with it.

    Args:
        files: those that are published.
    """
    present = set(files)
    for path in files:
        flaw = None
        if path.suffix == ".safetensors":
            flaw = _flaw_of_safetensors(path)
        elif any(fnmatch.fnmatch(path.name, pattern) for pattern in _TORCH_WEIGHTS):
            flaw = _flaw_of_torch_file(path)
        elif path.name.endswith((".safetensors.index.json", ".bin.index.json")):
            flaw = _flaw_of_index(path, present)
        if flaw is not None:
            yield path, flaw


def _flaw_of_safetensors(path: Path) -> str | None:
    try:  # the header must describe each byte that follows it
        return None if _names_in(path) else "it holds no tensor"
    except SafetensorError as error:
        return f"it is empty, cut short or damaged: {error}" if path.stat().st_size else "it is empty"


def _names_in(path: Path) -> set[str]:
    with safe_open(path, framework="numpy") as content:
        return set(content.keys())


def _flaw_of_torch_file(path: Path) -> str | None:
    with path.open("rb") as file:
        begin = file.read(4)
    if not begin:
        return "it is empty"
    if begin[:1] == _PICKLE:
        return None  # nothing in it says how long it is
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            names = archive.namelist()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        return f"it is cut short or damaged: {error}"
    if broken is not None:
        return f"it is damaged: {broken} in it is not what was written"
    return None if any("/data/" in name for name in names) else "it holds no tensor"


def _flaw_of_index(path: Path, present: set[Path]) -> str | None:
    try:
        shard_of: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        tensors = defaultdict(set)
        for tensor, shard in shard_of.items():
            tensors[Path(shard).as_posix()].add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "it is no index: a JSON object whose `weight_map` names the file of each tensor"
    if not tensors:
        return "it names no tensor"
    missing = sorted(shard for shard in tensors if path.parent / shard not in present)
    if missing:
        return f"{len(missing)} of the {len(tensors)} files that it names are missing: {_listed(missing)}"
    for shard, names in tensors.items():
        if shard.endswith(".safetensors") and _flaw_of_safetensors(path.parent / shard) is None:
            lacking = sorted(names - _names_in(path.parent / shard))
            if lacking:
                return f"{len(lacking)} tensors that it names are not in {shard}: {_listed(lacking)}"
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")

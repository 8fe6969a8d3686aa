"""Results on disk: written whole or not at all, never mixed between different settings, and summed up."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_amp.files import write_whole

RESULTS_NAME = "results.json"
SETTINGS_NAME = "settings.json"
LOCK_NAME = ".run.lock"
_TRAINED = (RESULTS_NAME, "seed_*/checkpoint-*", "seed_*/*.json")  # one of them is there as soon as work could be lost
METRIC_NAMES = ("accuracy", "error_rate", "nll", "ece")


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON; the file is there whole or as it was before.

    Numbers that are not finite become null, since JSON has no word for them.

    Args:
        path: file to write; its folder is made.
        content: what `json.dump` takes.
    """
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_whole(path, text.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return a JSON file's content, None where there is no such file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file ({error}); delete it to run that part again") from error


@contextmanager
def own_folder(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of a folder meanwhile; one that was killed keeps nobody out.

    Raises:
        BlockingIOError: another run has it.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"`output_dir` {folder} is in use by another run; wait for it, or give another --output_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


def note_settings(output_dir: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Write `settings` to `output_dir`, for `check_output_dir` of a later run."""
    write_json(Path(output_dir) / SETTINGS_NAME, settings)


def check_output_dir(output_dir: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Check that the results in `output_dir`, if there are any, were made with the same settings.

    Where nothing was trained, as after a run that was refused, those that are noted there do not count, either.
    Settings that only one side knows do not count: another version of a library may bring new ones.

    Args:
        output_dir: the run's folder; it may not exist yet.
        settings: everything that changes the results.

    Raises:
        ValueError: the folder holds results of other settings, ones that this command did not write, or ones of a seed
            that cannot be read.
        OSError: it cannot be written to.
    """
    _check_writable(Path(output_dir))
    if not any(next(Path(output_dir).glob(pattern), None) for pattern in _TRAINED):
        return
    path = Path(output_dir) / SETTINGS_NAME
    wanted = json.loads(json.dumps(_finite(dict(settings))))
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a whole JSON file, so what made this folder is not known; remove the folder {output_dir}, "
            "or give another --output_dir"
        ) from error
    if found is None:
        if (Path(output_dir) / RESULTS_NAME).exists():
            raise ValueError(
                f"`output_dir` {output_dir} holds a {RESULTS_NAME} but no {SETTINGS_NAME}, so what made it "
                "is not known; give another --output_dir"
            )
        return
    changed = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    if changed:
        listed = ", ".join(f"{name}: {found[name]!r} there, {wanted[name]!r} now" for name in changed)
        raise ValueError(
            f"`output_dir` {output_dir} holds a run with other settings ({listed}); give another --output_dir, or "
            "the old settings to continue it"
        )
    other_seeds(output_dir)


def other_seeds(output_dir: str | os.PathLike[str], runs: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return the results of the seeds that are done in `output_dir`, but for those of `runs`.

    Raises:
        ValueError: a file is not JSON.
    """
    found = [read_json(path) for path in sorted(Path(output_dir).glob(f"seed_*/{RESULTS_NAME}"))]
    return [one for one in found if one["seed"] not in {run["seed"] for run in runs}]


def _check_writable(folder: Path) -> None:
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"`output_dir` {folder} cannot be a folder, since {there} is a file; give another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"`output_dir` {folder} cannot be written to; give another one, or make {there} writable")


def mean_and_standard_error(values: Sequence[float | None]) -> dict[str, float | int | None] | None:
    """Return mean, standard error std/√n (None for one value) and n; None if a value is missing."""
    if not values or any(value is None or not math.isfinite(value) for value in values):
        return None
    numbers = [float(value) for value in values if value is not None]
    error = statistics.stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "standard_error": error, "n": len(numbers)}


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard error over seeds of each test metric, for the last and the best epoch.

    Args:
        runs: per seed `{"test": {"last": {metric: value}, "best": {…} or None}, "seconds": …}`.
    """
    summary: dict[str, Any] = {}
    for which in ("last", "best"):
        tests = [run["test"].get(which) for run in runs]
        summary[which] = {
            name: mean_and_standard_error([test and test.get(name) for test in tests]) for name in METRIC_NAMES
        }
    for name in ("seconds", "sharpness"):
        summary[name] = mean_and_standard_error([run.get(name) for run in runs])
    return summary


def format_mean(value: Mapping[str, Any] | None, factor: float = 1.0, digits: int = 2) -> str:
    """Return "mean ± standard error" of one entry of a summary, "–" where there is none."""
    if value is None:
        return "–"
    mean = f"{value['mean'] * factor:.{digits}f}"
    if value["standard_error"] is None:
        return mean
    return f"{mean} ± {value['standard_error'] * factor:.{digits}f}"


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def results_table(results: Mapping[str, Any]) -> str:
    """Return the test metrics of one experiment as text: last and best, mean ± standard error over seeds."""
    summary, runs, tested_on = results["summary"], results["runs"], results["tested_on"]
    # Runs call test what they are tested on, also where the data have no test split.
    chosen = {run["best_selected_on"] for run in runs} - {None}
    chosen = sorted(tested_on if split == "test" else split for split in chosen)
    best = f"best, chosen on {'/'.join(chosen)}" if chosen else "best: nothing was evaluated"
    lines = [f"| {tested_on}, {len(runs)} seed(s) | accuracy % | error % | NLL | ECE % |", "|---|---|---|---|---|"]
    for which, name in (("last", "last epoch"), ("best", best)):
        cells = [
            format_mean(summary[which][metric], factor, digits)
            for metric, factor, digits in (("accuracy", 100, 2), ("error_rate", 100, 2), ("nll", 1, 3), ("ece", 100, 2))
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(rows: Sequence[dict[str, Any]], which: str = "last") -> str:
    """Return the comparison as a table: mean ± standard error over seeds.

    Args:
        rows: of `comparison.json`.
        which: `"last"` or `"best"` epoch.
    """
    error = rows[0].get("tested_on", "test") + " error %"
    lines = [
        f"| label noise | method ({which} epoch) | chosen | {error} | NLL | ECE % | sharpness | s per run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        summary = row["summary"]
        test = summary[which]
        cells = (
            f"{row['label_noise']:.0%}",
            row["label"],
            ", ".join(f"{one['name']}={one['chosen']}" for one in row["selections"]) or "–",
            format_mean(test["error_rate"], 100),
            format_mean(test["nll"], digits=3),
            format_mean(test["ece"], 100),
            format_mean(summary["sharpness"], digits=3),
            format_mean(summary["seconds"], digits=1),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def validation_means(results: dict[str, Any]) -> dict[str, float]:
    """Return mean validation error and NLL of the last epoch; inf where training went out of bounds."""
    means = {}
    for metric in ("error_rate", "nll"):
        values = [run["validation"][metric] for run in results["runs"]]
        bad = any(value is None or value != value for value in values)
        means[f"validation_{metric}"] = float("inf") if bad else sum(values) / len(values)
    return means

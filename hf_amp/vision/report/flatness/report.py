"""Measure the flatness of one or two models, part by part, and write numbers and figures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_amp.hub.environment import environment
from hf_amp.hub.facts import command_line
from hf_amp.vision.report.card import show_figures
from hf_amp.vision.report.flatness.arguments import FlatnessArguments
from hf_amp.vision.report.flatness.figures import save_contours, save_perturbation, save_reliability
from hf_amp.vision.report.flatness.parts import REPORT_NAME, Parts, finished_report
from hf_amp.vision.report.flatness.probe import (
    Point,
    evaluate,
    evaluation_mode,
    filter_normalised_direction,
    losses_at,
    reliability,
    worst_losses,
)
from hf_amp.vision.report.flatness.subjects import Subject, default_labels, load_splits, load_subject
from hf_amp.vision.report.results import write_json

FIGURES = {
    "flatness_perturbation.png": save_perturbation,
    "flatness_surface_contour.png": save_contours,
    "flatness_reliability.png": save_reliability,
}
_MOST_MODELS = 2


class FlatnessReport:
    """Loss around the weights of one or two models, and their calibration, on training and test images.

    `run` may be stopped and called again: what is measured is kept in `flatness_parts.json` until everything is there.
    Then `flatness.json` and the figures are written. Labels, devices and batch sizes may change in between; any other
    setting, other weights or other images make another report, which takes the place of one that is there only if
    `args.overwrite` is set.

    Args:
        models: folders or Hub ids, one or two.
        args: images, places, folder.
        command: what the user typed, for the record; None: this process's command line.

    Raises:
        ValueError: settings, models and images do not fit together, or the folder holds a report of other settings.
        OSError: a model or the data set cannot be found.
    """

    def __init__(self, models: Sequence[str], args: FlatnessArguments, command: str | None = None) -> None:
        labels = default_labels(models) if args.labels is None else args.labels
        _check_models(models, labels)
        self.args = args
        self.command = command or command_line() or shlex.join(Path(word).name for word in sys.argv[:1])
        self.folder = _folder(args, models[0])
        splits = load_splits(args)
        self.sizes = {name: len(split) for name, split in splits.items()}
        self.subjects = [load_subject(name, label, splits, args) for name, label in zip(models, labels, strict=True)]
        for subject in self.subjects:
            _check_loss(subject)
        self.finished = finished_report(self.folder, self.settings(), args.overwrite)

    def settings(self) -> dict[str, Any]:
        """Return everything that changes a number: the places, and fingerprints of weights and images."""
        args = self.args
        data = {name: getattr(args, name) for name in ("dataset", "max_samples", "label_noise")}
        return {**data, **args.places(), "subjects": [subject.fingerprint for subject in self.subjects]}

    def run(self) -> dict[str, Any]:
        """Measure what is not measured yet, write everything, and return the content of `flatness.json`."""
        parts = Parts(self.folder, self.settings())
        if self.finished is None:
            measured = [self._measure(i, subject, parts) for i, subject in enumerate(self.subjects)]
            facts = {"splits": self.sizes, "settings": self.settings(), "command": self.command, **environment()}
        else:
            measured = self.finished["models"]
            facts = {name: value for name, value in self.finished.items() if name != "models"}
        names = [{"label": subject.label, "model": subject.name} for subject in self.subjects]
        content = {"models": [{**old, **new} for old, new in zip(measured, names, strict=True)], **facts}
        write_json(self.folder / REPORT_NAME, content)
        for name, save in FIGURES.items():
            save(self.folder / name, content["models"])
        show_figures(self.folder)
        parts.discard()
        return content

    def _measure(self, index: int, subject: Subject, parts: Parts) -> dict[str, Any]:
        """Return all numbers of one model; each part is kept as soon as it is there."""
        args = self.args
        total = args.num_directions * args.num_sizes + (args.num_sizes - 1) * (args.ascents + 1) + args.grid_size**2 + 1
        with tqdm(total=total, desc=subject.label, unit="pass", dynamic_ncols=True) as bar:

            def part(name: str, passes: int, measure: Callable[[], Any]) -> Any:
                bar.set_postfix_str(name)
                key, before = f"{index}/{name}", bar.n
                result = parts.get(key, measure)
                bar.update(before + passes - bar.n)
                return result

            def step() -> None:
                bar.update()

            calibration = part("reliability", 1, lambda: reliability(subject.model, subject.splits))
            return {
                "reliability": calibration,
                "random": self._random(subject, part, step),
                "worst": self._worst(subject, part, step),
                "surface": self._surface(subject, part, step),
            }

    def _random(self, subject: Subject, part: Callable[..., Any], step: Callable[[], None]) -> dict[str, Any]:
        sizes = np.linspace(0, self.args.max_size, self.args.num_sizes).tolist()

        def along(i: int) -> list[Point]:
            return losses_at(subject.model, [self._direction(subject, i)], [(s,) for s in sizes], subject.splits, step)

        rays = [
            part(f"random direction {i + 1}", len(sizes), lambda i=i: along(i)) for i in range(self.args.num_directions)
        ]
        return {"sizes": sizes, **self._by_split(rays)}

    def _worst(self, subject: Subject, part: Callable[..., Any], step: Callable[[], None]) -> dict[str, Any]:
        args = self.args
        radii = np.linspace(0, float(args.max_epsilon or 0), args.num_sizes).tolist()
        with evaluation_mode(subject.model):
            points = [evaluate(subject.model, subject.splits)]

        def within(epsilon: float) -> Point:
            return worst_losses(
                subject.model, subject.splits, epsilon, args.norm, args.ascents, start=points[-1], on_pass=step
            )

        for i, radius in enumerate(radii[1:], 1):
            points.append(part(f"worst direction, radius {i}", args.ascents + 1, lambda r=radius: within(r)))
        return {"epsilons": radii, "norm": args.norm, "found_on": next(iter(self.sizes)), **self._by_split(points)}

    def _surface(self, subject: Subject, part: Callable[..., Any], step: Callable[[], None]) -> dict[str, Any]:
        places = np.linspace(-self.args.max_size, self.args.max_size, self.args.grid_size).tolist()
        # Not exactly 0 otherwise, and the middle is the model itself.
        places[len(places) // 2] = 0.0
        directions = [self._direction(subject, i) for i in (0, 1)]

        def row(y: float) -> list[Point]:
            return losses_at(subject.model, directions, [(x, y) for x in places], subject.splits, step)

        rows = [part(f"surface, row {i + 1}", len(places), lambda y=y: row(y)) for i, y in enumerate(places)]
        return {"coordinates": places, **self._by_split(rows)}

    def _direction(self, subject: Subject, index: int) -> dict[str, torch.Tensor]:
        """Return one of the random directions: the same random numbers for all models of the same shapes."""
        seed = int(np.random.SeedSequence([self.args.seed, index]).generate_state(1)[0])
        return filter_normalised_direction(subject.model, torch.Generator().manual_seed(seed))

    def _by_split(self, points: Any) -> dict[str, Any]:
        """Turn points, or lists of them, into numbers of the same shape by split and metric."""

        def pick(nested: Any, split: str, metric: str) -> Any:
            if isinstance(nested, list):
                return [pick(one, split, metric) for one in nested]
            return nested[split][metric]

        return {
            split: {metric: pick(points, split, metric) for metric in ("loss", "error_rate")} for split in self.sizes
        }


def _check_models(models: Sequence[str], labels: Sequence[str]) -> None:
    if not 1 <= len(models) <= _MOST_MODELS:
        raise ValueError(f"`models` must be one model or two to compare, got {len(models)}; compare two at a time")
    if len(labels) != len(models):
        raise ValueError(
            f"`labels` must name each model once, got {len(labels)} for {len(models)}; give --labels ERM AMP"
        )
    if len(set(labels)) != len(labels):
        raise ValueError(f"`labels` must differ, got {list(labels)}; give --labels ERM AMP")


def _check_loss(subject: Subject) -> None:
    with evaluation_mode(subject.model):
        losses = {split: values["loss"] for split, values in evaluate(subject.model, subject.splits).items()}
    if not np.isfinite(list(losses.values())).all():
        raise ValueError(f"`model` {subject.name} has losses {losses}; give weights of a training that did not diverge")


def _folder(args: FlatnessArguments, model: str) -> Path:
    if args.output_dir is not None:
        return Path(args.output_dir)
    return Path(model) if Path(model).is_dir() else Path("outputs") / f"flatness_{model.replace('/', '-')}"

"""How little AMP can cost: test error against measured seconds and against forward-backward passes.

The same network, images and seeds for ERM, ERM with twice the epochs, AMP, and ways to make AMP cheaper: the ascent on
a share of each batch, AMP on every k-th step only, AMP in the last part of training only, a random direction without
any ascent (RMP). Each has its own radius, chosen on validation images, since a cheaper ascent is also a weaker or a
noisier one.

    python examples/benchmarks/cheap_amp.py --config examples/evidence/cheap_digits.yaml
    python examples/benchmarks/cheap_amp.py --config examples/evidence/cheap_cifar10_large_batch.yaml \\
        --dataset_path DATA

All other flags are those of examples/image_classification.py. Seconds are taken apart from the errors: short trainings
of all variants in turn, several rounds, each variant divided by ERM in the same round. What is done is not run again.
Writes cheap_amp.json and cheap_amp.png to output_dir.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_amp.hub.learning_curves import save_png
from hf_amp.hub.text.invocation import plain_value
from hf_amp.vision.report.comparison import Comparison, Selection, Variant
from hf_amp.vision.report.experiment import Experiment
from hf_amp.vision.report.results import (
    check_output_dir,
    format_mean,
    mean_and_standard_error,
    note_settings,
    read_json,
    write_json,
)
from hf_amp.vision.train.command_line import read_settings, typed
from hf_amp.vision.train.images import Images

ERM, TWICE, AMP = "ERM", "ERM, twice the epochs", "AMP"
JSON_NAME, FIGURE_NAME, TIMING_NAME = "cheap_amp.json", "cheap_amp.png", "timing.json"
WORTHWHILE = 0.9  # share of AMP's gain that a cheaper way should keep
# Where the mark of a point may stand, since many lie close together: points to the right and up, and its alignment.
MARK_PLACES = [
    (6, 3, "left"),
    (-6, 3, "right"),
    (6, -10, "left"),
    (-6, -10, "right"),
    (6, 14, "left"),
    (-6, 14, "right"),
]


@dataclass(frozen=True)
class Entry:
    """One way to train: what the table calls it, the line of the figure that it is on, its mark there, its settings."""

    label: str
    family: str
    mark: str
    settings: dict[str, str]
    method: str = "amp"

    @property
    def variant(self):
        return Variant(self.method, self.settings)

    def of(self, settings):
        """The settings of a run this way."""
        return settings.replaced(method=self.method, **typed(self.settings))


def entries(epochs):
    """All ways, for a training of so many epochs."""
    ways = [
        Entry(ERM, ERM, "", {}, "erm"),
        Entry(TWICE, "twice the epochs", "2 × epochs", {"num_train_epochs": f"{2 * epochs:g}"}, "erm"),
        Entry(AMP, AMP, "", {}),
    ]
    for share in (0.5, 0.25, 0.12, 0.06):
        settings = {"amp_ascent_fraction": str(share)}
        ways.append(Entry(f"ascent on {share:.0%} of the batch", "share of the batch", f"{share:.0%}", settings))
    for share in (0.12, 0.06):
        descent = {"amp_ascent_fraction": str(share), "amp_norm_stats": "descent"}
        label = f"ascent on {share:.0%}, its batch norm statistics not kept"
        ways.append(Entry(label, "statistics not kept", f"{share:.0%}", descent))
    for every in (2, 5, 10):
        ways.append(Entry(f"every {every} steps", "every k-th step", f"k={every}", {"amp_every": str(every)}))
    for share, every in ((0.12, 2), (0.25, 3), (0.5, 5)):
        mixed = {"amp_ascent_fraction": str(share), "amp_every": str(every)}
        ways.append(Entry(f"ascent on {share:.0%}, every {every} steps", "both", f"{share:.0%}, k={every}", mixed))
    for start in (0.5, 0.75):
        ways.append(Entry(f"from {start:.0%} of the training", "last part", f"{start:.0%}", {"amp_start": str(start)}))
    return [*ways, Entry("random direction (RMP)", "random direction", "RMP", {}, "rmp")]


FAMILIES = tuple(dict.fromkeys(way.family for way in entries(1) if way.family not in (ERM, AMP)))


def chosen_ways(epochs, families):
    """ERM, AMP, and the ways of these families."""
    return [way for way in entries(epochs) if way.family in (ERM, AMP, *families)]


def passes(training, base_epochs):
    """Forward-backward passes of a training over those of ERM, the ascent on a share counted by its images."""
    length = training.num_train_epochs / base_epochs
    if training.method != "amp":
        return length
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    share = max(1, int(training.amp_ascent_fraction * batch + 0.5)) / batch
    active = (training.amp_end - training.amp_start) / training.amp_every
    return length * (1 + active * training.amp_inner_iter * share)


class Timing:
    """Seconds of short trainings of all ways, in turn; each finished round is kept in a file."""

    def __init__(self, ways, settings, folder, steps, rounds):
        self.ways, self.folder, self.rounds = ways, Path(folder), rounds
        self.short = settings.replaced(max_steps=steps, eval_strategy="no", save_strategy="no")
        given = {name: plain_value(value) for name, value in settings.given.items()}
        self.settings = {"given": given, "steps": steps, "ways": [way.label for way in ways]}
        self.images = None
        check_output_dir(self.folder, self.settings)

    def run(self):
        """Return the seconds of each way by the round, those of rounds that a former call finished included."""
        note_settings(self.folder, self.settings)
        rounds = (read_json(self.folder / TIMING_NAME) or {"rounds": []})["rounds"]
        if len(rounds) < self.rounds:
            self._seconds(self.ways[0])  # the first training also loads libraries and chooses kernels
        for _ in tqdm(range(len(rounds), self.rounds), desc="timing", disable=len(rounds) >= self.rounds):
            rounds.append({way.label: self._seconds(way) for way in self.ways})
            write_json(self.folder / TIMING_NAME, {"rounds": rounds})
        return rounds[: self.rounds]

    def _seconds(self, way):
        with tempfile.TemporaryDirectory() as folder:
            model, data, training = way.of(self.short).replaced(output_dir=folder).arguments()
            training.seeds = training.all_seeds[:1]
            if self.images is None:
                self.images = Images(data)
            with contextlib.redirect_stdout(io.StringIO()):  # the errors after a few steps mean nothing
                results = Experiment(model, data, training, self.images, verbose=False).run()
        return results["runs"][0]["seconds"]


def costs(rounds, label):
    """Seconds over those of ERM: median, lowest and highest of the rounds."""
    ratios = [one[label] / one[ERM] for one in rounds]
    return {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}


def share_kept(erm, amp, cheap):
    """Return the share of AMP's gain over ERM that a cheaper way keeps, and its standard error (jackknife over seeds).

    Args:
        erm, amp, cheap: test errors by the seed, in the same order.

    Returns:
        (share, standard error); (None, None) where AMP gains nothing.
    """

    def share(left_out=None):
        chosen = [i for i in range(len(erm)) if i != left_out]
        gain = sum(erm[i] - amp[i] for i in chosen)
        return sum(erm[i] - cheap[i] for i in chosen) / gain if gain > 0 else None

    value, n = share(), len(erm)
    parts = [share(i) for i in range(n)] if n > 1 else [None]
    if value is None or None in parts:
        return value, None
    return value, ((n - 1) / n * sum((part - statistics.fmean(parts)) ** 2 for part in parts)) ** 0.5


def rows_of(ways, content, training_of, base_epochs, rounds):
    """One row per label noise and way: errors, passes, cost, and the share of AMP's gain that is kept."""
    rows = []
    for noise in dict.fromkeys(row["label_noise"] for row in content["rows"]):
        found = [row for row in content["rows"] if row["label_noise"] == noise]
        errors = [[test["last"]["error_rate"] for test in row["test"].values()] for row in found]
        by_label = dict(zip((way.label for way in ways), errors, strict=True))
        for way, row, own in zip(ways, found, errors, strict=True):
            kept, kept_error = share_kept(by_label[ERM], by_label[AMP], own)
            rows.append(
                {
                    "label": way.label,
                    "family": way.family,
                    "mark": way.mark,
                    "label_noise": noise,
                    "settings": row["settings"],
                    "selections": row["selections"],
                    "passes": passes(training_of(way), base_epochs),
                    "cost": {"median": 2.0, "lowest": 2.0, "highest": 2.0}
                    if way.label == TWICE
                    else costs(rounds, way.label),
                    "error": mean_and_standard_error(own),
                    "nll": row["summary"]["last"]["nll"],
                    "gain_kept": kept,
                    "gain_kept_standard_error": kept_error,
                    "errors_by_seed": own,
                }
            )
    return rows


def table(rows):
    """The study as a table."""
    lines = [
        "| label noise | | ε | test error % | NLL | gain kept | passes | × ERM's seconds (rounds) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        kept = "–" if row["gain_kept"] is None else f"{row['gain_kept']:.0%}"
        if row["gain_kept_standard_error"] is not None and row["label"] not in (ERM, AMP):
            kept += f" ± {row['gain_kept_standard_error']:.0%}"
        cost = row["cost"]
        seconds = f"{cost['median']:.2f} ({cost['lowest']:.2f} to {cost['highest']:.2f})"
        cells = (
            f"{row['label_noise']:.0%}",
            row["label"],
            row["settings"].get("amp_epsilon", "–"),
            format_mean(row["error"], 100),
            format_mean(row["nll"], digits=3),
            kept,
            f"{row['passes']:.2f}",
            "2 (by definition)" if row["label"] == TWICE else seconds,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path, rows, title):
    """Draw error against measured cost above, against passes below; a column for each share of label noise."""
    noises = list(dict.fromkeys(row["label_noise"] for row in rows))
    figure = Figure(figsize=(8 * len(noises), 9), layout="constrained")
    grid = figure.subplots(2, len(noises), squeeze=False, sharey="col")
    for column, noise in enumerate(noises):
        chosen = [row for row in rows if row["label_noise"] == noise and row["error"] is not None]
        draw_errors(grid[0][column], chosen, [row["cost"]["median"] for row in chosen])
        draw_errors(grid[1][column], chosen, [row["passes"] for row in chosen])
        grid[0][column].set(title=f"{noise:.0%} label noise", xlabel="measured seconds / ERM's")
        grid[1][column].set(xlabel="forward-backward passes / ERM's")
        grid[0][column].legend(fontsize=8)
    figure.suptitle(title)
    figure.draw_without_rendering()  # so that it is known where points are
    for axes in figure.axes:
        spread_marks(axes)
    save_png(figure, path)


def draw_errors(axes, rows, costs_of_rows):
    """Draw the errors of rows against their costs, one line for each family, and what is aimed at.

    The axis of the costs widens those of little more than ERM's, which matter most.
    """
    places = {row["label"]: (cost, row["error"]["mean"] * 100) for row, cost in zip(rows, costs_of_rows, strict=True)}
    for family in dict.fromkeys(row["family"] for row in rows):
        line = [row for row in rows if row["family"] == family]
        x, y = zip(*(places[row["label"]] for row in line), strict=True)
        errors = [(row["error"]["standard_error"] or 0.0) * 100 for row in line]
        color = axes.errorbar(x, y, errors, marker="o", capsize=3, label=family).lines[0].get_color()
        for row in line:
            place = places[row["label"]]
            axes.annotate(row["mark"], place, MARK_PLACES[0][:2], textcoords="offset points", fontsize=8, color=color)
    if {ERM, AMP} <= places.keys() and places[ERM][1] > places[AMP][1]:
        wanted = places[ERM][1] - WORTHWHILE * (places[ERM][1] - places[AMP][1])
        axes.axhline(wanted, color="grey", linestyle=":", label=f"{WORTHWHILE:.0%} of AMP's gain")
    axes.axvline(1.1, color="grey", linestyle="--", label="1.10 × ERM")
    axes.set_xscale(
        "function", functions=(lambda cost: np.arcsinh((cost - 1) / 0.05), lambda place: 1 + 0.05 * np.sinh(place))
    )
    axes.set_xticks([1, 1.05, 1.1, 1.2, 1.5, 2, 3], labels=["1", "1.05", "1.1", "1.2", "1.5", "2", "3"])
    axes.margins(x=0.13)
    axes.set_ylabel("test error in %")


def spread_marks(axes):
    """Put each mark beside its point where it covers least: points, error bars, the legend and other marks."""
    texts = [text for text in axes.texts if text.get_text()]
    points = axes.transData.transform(
        [point for line in axes.lines if line.get_marker() == "o" for point in line.get_xydata()]
    )
    covered = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    for bars in axes.collections:
        for segment in bars.get_segments():
            (x, low), (_, high) = axes.transData.transform(segment)
            covered.append(Bbox.from_bounds(x - 1, low, 2, high - low))
    if legend := axes.get_legend():
        covered.append(legend.get_window_extent())
    for text in texts:

        def box_at(place, text=text):
            *offset, alignment = place
            text.set(position=offset, horizontalalignment=alignment)
            return text.get_window_extent()

        best = min(MARK_PLACES, key=lambda place: box_at(place).count_overlaps(covered))
        covered.append(box_at(best))


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--label_noise", nargs="+", type=float, default=[0.0, 0.2], help="Shares of labels to replace.")
    parser.add_argument(
        "--select", nargs="+", default=[], help="amp_epsilon=value,value,...: each way chooses its own."
    )
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="Ways beside ERM and AMP; default: all."
    )
    parser.add_argument("--select_seeds", nargs="+", type=int, help="Seeds that choose; default: the first one.")
    parser.add_argument("--timing_steps", type=int, default=100, help="Steps of each timed training.")
    parser.add_argument("--timing_rounds", type=int, default=7, help="Timed trainings of each way.")
    parser.add_argument("--output_dir", default="outputs/cheap_amp", help="Where everything goes.")
    settings, options = read_settings(argv, parser)
    for name in ("timing_steps", "timing_rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be >= 1, got {getattr(options, name)}; raise it")
    return options, settings


def main(argv=None):
    logging.disable_progress_bar()
    try:
        options, settings = parse(sys.argv[1:] if argv is None else argv)
        base_epochs = settings.replaced(method="erm").arguments()[2].num_train_epochs
        ways = chosen_ways(base_epochs, options.families)
        selections = [Selection.parse(text) for text in options.select]
        folder = Path(options.output_dir)
        comparison = Comparison(
            [way.variant for way in ways], options.label_noise, settings, folder, selections, options.select_seeds
        )
        timed = [way for way in ways if way.label != TWICE]
        timing = Timing(timed, settings, folder / "timing", options.timing_steps, options.timing_rounds)
    except (ValueError, TypeError, OSError) as error:  # what the user can correct; later errors keep their traceback
        sys.exit(f"error: {error}")
    rounds = timing.run()
    content = comparison.run()

    def training_of(way):
        return way.of(settings).arguments()[2]

    rows = rows_of(ways, content, training_of, base_epochs, rounds)
    result = {**content, "timing": {"steps": options.timing_steps, "rounds": rounds}, "rows": rows}
    write_json(folder / JSON_NAME, result)
    draw(folder / FIGURE_NAME, rows, f"{content['dataset']}: last epoch, mean ± standard error")
    print(table(rows), f"\nTable and figure are in {folder}")
    return result


if __name__ == "__main__":
    main()

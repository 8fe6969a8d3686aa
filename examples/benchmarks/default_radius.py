"""Does the default radius harm, and what does it gain? AMP with nothing set, beside Trainer and constant radii.

    python examples/benchmarks/default_radius.py --data DATA
    python examples/benchmarks/default_radius.py --tasks digits_width1_40epochs_noise0.4 --seeds 0 1 2
    python examples/benchmarks/default_radius.py --table

Each task is trained in these ways, with the same seeds:
  erm          plain training
  together     plain training on training and held-out images together
  default      AMPTrainer with nothing set: the radius follows the loss on the held-out images, which have as many wrong
               labels as the training images
  0.05 … 0.5   AMPTrainer with a constant radius; where a run takes minutes, the first seed chooses among the five,
               and only the best is trained with the other seeds
  ascent_…     as default, the ascent on 2, 6 or 24 % of each batch (some tasks)
Reported are test errors in % at the last epoch, for ERM also at the epoch of the lowest held-out loss. What is done is
not run again, so that the command may be stopped at any time. DATA has the folders cifar10, cifar100-small and
svhn-small as parquet files, and cifar10n/labels.parquet; tasks without images need none. Writes default_radius.json,
.md and .png to output_dir.
"""

import argparse
import gc
import json
import math
import statistics
import sys
from pathlib import Path

import datasets
import torch
from default_radius_tasks import ASCENT, TASKS, run_task
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_amp.files import write_whole
from hf_amp.hub.environment import environment
from hf_amp.hub.learning_curves import save_png
from hf_amp.vision.report.results import write_json
from hf_amp.vision.train.command_line import print_anywhere

CONSTANT = ("0.5", "0.3", "0.2", "0.1", "0.05")
FOLLOW_NOTHING = (*CONSTANT, "together")
WAYS = ("erm", "default", *FOLLOW_NOTHING, *ASCENT)
JSON_NAME, TABLE_NAME, FIGURE_NAME = "default_radius.json", "default_radius.md", "default_radius.png"


def ways_of(task):
    """The ways of a task; what follows no evaluation is trained once, not for each number of `eval_steps`."""
    others = () if TASKS[task].ascent else tuple(ASCENT)
    if TASKS[task].eval_steps:
        others += FOLLOW_NOTHING
    return tuple(way for way in WAYS if way not in others)


def paired(rows, left, right, key="error", seeds=None):
    """Mean, standard error (None for one seed) and number of the differences over the seeds that both ways have."""
    both = rows.get(left, {}).keys() & rows.get(right, {}).keys()
    shared = sorted(both if seeds is None else both & seeds)
    pairs = [(rows[left][seed][key], rows[right][seed]["error"]) for seed in shared]
    differences = [one - other for one, other in pairs if one is not None]
    if not differences:
        return None
    count = len(differences)
    error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    return statistics.mean(differences), error, count


def best_constant(rows):
    """The radius with the lowest mean error over the seeds that all five have, of equals the largest; or None."""
    shared = set.intersection(*(set(rows.get(way, {})) for way in CONSTANT))
    if not shared:
        return None
    return min(CONSTANT, key=lambda way: round(statistics.mean(rows[way][seed]["error"] for seed in shared), 6))


def summary_of(rows):
    """What a task came to: the change of the default against ERM, and of the best constant radius."""
    best = best_constant(rows)
    change, chosen = paired(rows, "default", "erm"), None if best is None else paired(rows, best, "erm")
    means, seconds = (
        {way: statistics.mean(one[key] for one in rows[way].values()) for way in WAYS if rows.get(way)}
        for key in ("error", "seconds")
    )
    summary = {"errors": means, "seconds": seconds, "best_constant": best, "default": change, "constant": chosen}
    summary["erm_best_epoch"] = paired(rows, "erm", "erm", "best_error")
    if change is not None:
        summary["harms"] = change[0] > (change[1] or 0)
        gains = chosen is not None and -chosen[0] > (chosen[1] or 0)
        summary["share_of_gain"] = None
        if gains:  # on the seeds of the constant radius, which may be fewer
            summary["share_of_gain"] = paired(rows, "default", "erm", seeds=rows[best].keys())[0] / chosen[0]
    return summary


def table(tasks):
    lines = [
        "| task | seeds | ERM | its best epoch | together | default | change | best constant | 0.5 | share of gain "
        f"| {' | '.join(f'ascent on {share:.0%}' for share in ASCENT.values())} | seconds: ERM | default |",
        f"|{'---|' * (12 + len(ASCENT))}",
    ]
    for name, task in tasks.items():
        one, errors = task["summary"], task["summary"]["errors"]
        if one["default"] is None:
            continue

        def cell(way, errors=errors):
            return f"{errors[way]:.1f}" if way in errors else "–"

        mean, error, seeds = one["default"]
        best = one["erm_best_epoch"]
        at_best = f"{errors['erm'] + best[0]:.1f}" if best else "–"
        share = one["share_of_gain"]
        chosen = f"{cell(one['best_constant'])} ({one['best_constant']})" if one["best_constant"] else "–"
        change = f"{mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")
        cells = (cell("erm"), at_best, cell("together"), cell("default"), change)
        more = (chosen, cell("0.5"), "–" if share is None else f"{share:.0%}", *map(cell, ASCENT))
        more += tuple(f"{one['seconds'][way]:.0f}" for way in ("erm", "default"))
        lines.append(f"| {' | '.join((name, str(seeds), *cells, *more))} |")
    summaries = [task["summary"] for task in tasks.values() if task["summary"]["default"] is not None]
    harmed = [name for name, task in tasks.items() if task["summary"].get("harms")]
    shares = [one["share_of_gain"] for one in summaries if one["share_of_gain"] is not None]
    lines.append("")
    worse = f"{', '.join(harmed) or 'none'}, of {len(summaries)}"
    lines.append(f"Worse than ERM by more than a standard error, or in the only seed: {worse}.")
    if shares:
        lines.append(f"Share of the best constant radius's gain: {statistics.mean(shares):.0%} in {len(shares)} tasks.")
    return "\n".join(lines)


def save_figure(tasks, path):
    """Change of the test error against ERM: the default, and the constant 0.5."""
    shown = [(name, task["summary"], task["rows"]) for name, task in tasks.items() if task["summary"]["default"]]
    figure = Figure(figsize=(8, 1.2 + 0.19 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for way, label, color, shift in (("0.5", "constant radius 0.5", "C1", 0.15), ("default", "default", "C0", -0.15)):
        points = [(i + shift, change) for i, (_, _, rows) in enumerate(shown) if (change := paired(rows, way, "erm"))]
        axes.errorbar(
            [change[0] for _, change in points],
            [place for place, _ in points],
            xerr=[change[1] or 0 for _, change in points],
            fmt="o",
            markersize=4,
            color=color,
            label=label,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name, _, _ in shown], fontsize=7)
    axes.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    axes.set_xlabel("test error less that of Trainer, percentage points (bars: standard error over seeds)")
    axes.legend(loc="best")
    save_png(figure, path)


def parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="Folder of the image data; without it, tasks that need it wait.")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), metavar="TASK", help=f"Some of {', '.join(TASKS)}.")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="Some of the ways; default: all.")
    parser.add_argument("--seeds", nargs="+", type=int, help="Default: 0 1 2, and 3 4 where a run takes seconds.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/default_radius"), help="Where everything goes."
    )
    parser.add_argument("--table", action="store_true", help="Run nothing; print the table of what is there.")
    options = parser.parse_args(argv)
    if options.tasks and not options.data and (needing := [one for one in options.tasks if TASKS[one].needs_data]):
        parser.error(f"--tasks {needing[0]} needs images; add --data FOLDER")
    return options


def runs_to_make(options, rows):
    """Every (task, way, seed) that is not there yet, seed by seed, so that what is there is paired."""
    for name, way, seed in runs_asked_for(options):
        done = rows.get(name, {})
        chosen = best_constant(done) if TASKS[name].first_seed_chooses and way in CONSTANT else None
        if str(seed) not in done.get(way, {}) and chosen in (None, way):
            yield name, way, seed


def runs_asked_for(options):
    for name, task in TASKS.items():
        if (options.tasks and name not in options.tasks) or (task.needs_data and options.data is None):
            continue
        for seed in options.seeds if options.seeds is not None else task.seeds:
            for way in ways_of(name):
                if options.ways is None or way in options.ways:
                    yield name, way, seed


def main(argv=None):
    print_anywhere()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    options = parse(argv)
    path = options.output_dir / JSON_NAME
    found = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else {}
    rows = {name: task["rows"] for name, task in found.items()}

    def left():
        return [] if options.table else list(runs_to_make(options, rows))

    progress = tqdm(desc="trainings", disable=not left())
    while todo := left():  # asked anew after each: fewer once a radius is chosen
        name, way, seed = todo[0]
        progress.total = progress.n + len(todo)
        progress.refresh()
        try:
            result = run_task(name, way, seed, options.output_dir, options.data)
        except (ValueError, OSError) as error:  # what the user can correct
            sys.exit(f"error: {name}, {way}: {error}")
        rows.setdefault(name, {}).setdefault(way, {})[str(seed)] = result
        write_json(path, content_of(rows))
        progress.update()
        gc.collect()
    progress.close()
    content = content_of(rows)
    save_figure(content["tasks"], options.output_dir / FIGURE_NAME)
    write_whole(options.output_dir / TABLE_NAME, f"{table(content['tasks'])}\n".encode())
    print(table(content["tasks"]))
    return content


def content_of(rows):
    tasks = {name: {"rows": rows[name], "summary": summary_of(rows[name])} for name in TASKS if name in rows}
    return {"tasks": tasks, "torch_threads": torch.get_num_threads(), **environment(1)}


if __name__ == "__main__":
    main()

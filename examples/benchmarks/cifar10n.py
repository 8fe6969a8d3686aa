"""The table and the figure of the study with labels that people gave (CIFAR-10N), from what compare.py wrote.

    python examples/benchmarks/cifar10n.py outputs/cifar10n_a_worst outputs/cifar10n_b_worst ...

Each folder is one of cifar10n_REGIME_LABELS, trained with examples/evidence/cifar10n_REGIME.yaml: REGIME is a, where
plain training does not over-fit, or b, where it does. Writes cifar10n.json and cifar10n.png to --output_dir; what its
cifar10n.json already has of other methods and seeds stays.
"""

import argparse
import json
import re
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from hf_amp.hub.learning_curves import save_png
from hf_amp.vision.report.results import mean_and_standard_error, read_json, write_json

REGIMES = {"a": "does not over-fit", "b": "over-fits"}
ONE_WORD = {"ERM": "Trainer", "AMP": "AMPTrainer, nothing set"}
METHODS = {
    "ERM": "ERM (`Trainer`)",
    "ERM (num_train_epochs=24)": "ERM, twice the epochs",
    "ERM (num_train_epochs=40)": "ERM, twice the epochs",
    "AMP": "AMP, nothing set",
    "AMP (amp_epsilon=0.5)": "AMP, ε = 0.5 in every step",
    "AMP (amp_ascent_fraction=0.06, amp_norm_stats=descent)": "AMP, ascent on 6 %",
}
LABELS = {"official": 0, "aggregate": 9, "random1": 17, "random2": 18, "random3": 18, "worst": 40}  # % wrong
OF_A_SEED = ("test", "training_loss", "radii", "passes", "seconds")
JSON_NAME, FIGURE_NAME = "cifar10n.json", "cifar10n.png"


def study_of(folder):
    """Regime, labels, and rows of one comparison.

    Args:
        folder: that compare.py wrote, named cifar10n_REGIME_LABELS.

    Raises:
        ValueError: the folder has another name, or nothing was compared in it yet.
    """
    named = re.fullmatch(r"cifar10n_([ab])_(\w+)", folder.name)
    if named is None:
        raise ValueError(f"{folder} is not named cifar10n_REGIME_LABELS, such as cifar10n_b_worst; rename it")
    path = folder / "comparison.json"
    if not path.is_file():
        raise ValueError(f"{path} is not there; train first, with examples/evidence/cifar10n_{named[1]}.yaml")
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [row_of(row, folder) for row in content["rows"]]
    return {"regime": named[1], "labels": named[2], "rows": rows, "versions": content["versions"]}


def row_of(row, folder):
    """What one method came to, with every seed, so that differences can be paired."""
    own = folder.joinpath(*Path(row["folder"]).parts[-2:])  # of the comparison, which may have been moved
    runs = json.loads((own / "results.json").read_text(encoding="utf-8"))["runs"]
    runs = {str(run["seed"]): run for run in runs if run["seed"] in row["seeds"]}
    curves = {seed: [point for point in run["curves"] if "loss" in point] for seed, run in runs.items()}
    return {
        "label": row["label"],
        "settings": row["settings"],
        "test": row["test"],
        "training_loss": {seed: points[-1].get("erm_loss", points[-1]["loss"]) for seed, points in curves.items()},
        "radii": {seed: [point.get("amp_epsilon") for point in points] for seed, points in curves.items()},
        "passes": {
            seed: passes(points, float(row["settings"].get("amp_ascent_fraction", 1)))
            for seed, points in curves.items()
        },
        "seconds": {seed: run["seconds"] for seed, run in runs.items()},
    }


def merged(studies):
    """One study for each regime and labels: later ones add methods, and seeds of a method, to those before."""
    found = {}
    for study in studies:
        whole = found.setdefault((study["regime"], study["labels"]), {**study, "rows": []})
        rows = {row["label"]: row for row in whole["rows"]}
        for row in study["rows"]:
            before = rows.get(row["label"], {})
            rows[row["label"]] = {**row, **{key: {**before.get(key, {}), **row[key]} for key in OF_A_SEED}}
        whole["rows"] = sorted(rows.values(), key=lambda row: rank(row["label"], METHODS))
    return sorted(found.values(), key=lambda study: (study["regime"], rank(study["labels"], LABELS)))


def check_erm(studies):
    """Refuse a study without the plain training that all others are compared with."""
    for study in studies:
        if all(row["label"] != "ERM" for row in study["rows"]):
            raise ValueError(
                f"regime {study['regime']} with labels {study['labels']!r} has no ERM to compare with; give the folder "
                "that has it, too, or train it with --methods erm"
            )


def rank(name, names):
    """Where a name stands in a list; the others follow it, by the alphabet."""
    return (0, list(names).index(name), "") if name in names else (1, 0, name)


def passes(points, fraction):
    """Forward-backward passes over all training images: one in a plain epoch, more in one with an ascent."""
    return sum(1 + fraction * ("perturbation_norm" in point) for point in points)


def summary_of(row, erm):
    """Means and standard errors over the seeds: errors and NLL, and the change of the error against ERM, paired."""
    test, base = row["test"], erm["test"]
    errors = {seed: (run["last"]["error_rate"], base.get(seed)) for seed, run in test.items()}
    change = [100 * (error - of_erm["last"]["error_rate"]) for error, of_erm in errors.values() if of_erm]
    best = [run["best"] and 100 * run["best"]["error_rate"] for run in test.values()]
    return {
        "error": mean_and_standard_error([100 * run["last"]["error_rate"] for run in test.values()]),
        "change": mean_and_standard_error(change),
        "best": mean_and_standard_error(best),
        "nll": mean_and_standard_error([run["last"]["nll"] for run in test.values()]),
        "ece": mean_and_standard_error([100 * run["last"]["ece"] for run in test.values()]),
        "passes": mean_and_standard_error(
            [count / statistics.mean(erm["passes"].values()) for count in row["passes"].values()]
        ),
        "training_loss": mean_and_standard_error(list(row["training_loss"].values())),
        "seconds": min(row["seconds"].values(), default=None),  # the least that other work delayed
    }


def shown(value, digits=2, sign=""):
    if value is None or value["mean"] is None:
        return "–"
    error = value["standard_error"]
    return f"{value['mean']:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def name_of(row):
    """What a method is called; a radius that was chosen on held-out data is no part of its label."""
    name, radius = METHODS.get(row["label"], row["label"]), row["settings"].get("amp_epsilon")
    return name if radius is None or row["label"] in METHODS else f"{name}, ε = {radius} (chosen)"


def table(studies):
    """One row a method: test error in % at the last epoch, its change against ERM, at the epoch of the lowest held-out
    loss; NLL, ECE in %, loss on the training images, passes over them as a multiple of ERM's, seconds of training
    of the fastest seed.
    """
    lines = [
        "| labels | regime | method | seeds | error | change | best epoch | NLL | ECE | training loss | passes | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for study in studies:
        erm = next(row for row in study["rows"] if row["label"] == "ERM")
        for row in study["rows"]:
            one = summary_of(row, erm)
            cells = [study["labels"], study["regime"], name_of(row)]
            cells += [str(len(row["test"])), shown(one["error"])]
            cells += ["–" if row is erm else shown(one["change"], sign="+"), shown(one["best"]), shown(one["nll"], 3)]
            cells += [shown(one["ece"]), shown(one["training_loss"]), shown(one["passes"])]
            cells.append("–" if one["seconds"] is None else f"{one['seconds']:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save_figure(path, studies):
    """Test error of Trainer and AMPTrainer, one word changed: a part for each regime, a pair of bars for each study.

    Dots are seeds, diamonds means at the epoch of the lowest held-out loss.
    """
    parts = [part for regime in reversed(REGIMES) if (part := [one for one in studies if one["regime"] == regime])]
    figure = Figure(figsize=(max(6.5, 1.2 + 1.5 * len(studies)), 4), layout="constrained")
    all_axes = figure.subplots(1, len(parts), sharey=True, squeeze=False, width_ratios=[len(part) for part in parts])[0]
    for axes, part in zip(all_axes, parts, strict=True):
        for place, study in enumerate(part):
            for i, (label, name) in enumerate(ONE_WORD.items()):
                row = next((row for row in study["rows"] if row["label"] == label), None)
                if row is not None:
                    draw_bar(axes, place + 0.4 * (i - 0.5), row, color=("C7", "C0")[i], label=name)
        names = [study["labels"] for study in part]
        axes.set_xticks(range(len(part)), [f"{name}\n{LABELS.get(name, '?')} % wrong" for name in names])
        axes.set_title(f"Trainer {REGIMES[part[0]['regime']]}", fontsize="medium")
    all_axes[0].set_ylabel("test error in %, official labels")
    figure.suptitle("CIFAR-10, trained on labels that people gave")
    handles = {label: handle for handle, label in zip(*all_axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    save_png(figure, path)


def draw_bar(axes, x, row, **options):
    """One method: a bar as high as the mean error, in %."""
    errors = [100 * run["last"]["error_rate"] for run in row["test"].values()]
    mean = statistics.mean(errors)
    axes.bar(x, mean, width=0.38, **options)
    axes.plot([x - 0.08] * len(errors), errors, "o", color="black", markersize=3)
    axes.annotate(f"{mean:.1f}", (x, mean / 2), ha="center", color="white")
    best = [100 * run["best"]["error_rate"] for run in row["test"].values() if run["best"]]
    if best:
        at = {"color": "white", "markeredgecolor": "black", "label": "at the lowest held-out loss"}
        axes.plot(x + 0.08, statistics.mean(best), "D", **at)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", type=Path, help="Folders that compare.py wrote.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"), help="Where table and figure go.")
    options = parser.parse_args(argv)
    try:
        published = read_json(options.output_dir / JSON_NAME) or {"studies": []}
        studies = merged([*published["studies"], *map(study_of, options.folders)])
        check_erm(studies)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    write_json(options.output_dir / JSON_NAME, {"studies": studies})
    save_figure(options.output_dir / FIGURE_NAME, studies)
    print(table(studies))
    return studies


if __name__ == "__main__":
    main()

"""For how many epochs of CIFAR-10 some trainings have time on a GPU: see gpu_minutes.sh. It starts at once.

    python examples/benchmarks/gpu_plan.py SECONDS --steps_file steps.jsonl --trainings erm amp

Prints a number of epochs, the same for all, by the steps that gpu_steps.py measured compiled and in bf16.
"""

import argparse
import json
from pathlib import Path

# Of a step; guesses, where none was measured
MILLISECONDS = {"Trainer": 4.0, "AMPTrainer N=1": 8.0, "AMPTrainer, ascent on 6 %": 5.0}
VARIANTS = {"erm": "Trainer", "amp": "AMPTrainer N=1", "cheap": "AMPTrainer, ascent on 6 %"}
IMAGES, FEWEST_EPOCHS = 50_000, 5
EVALUATION, START = 0.5, 35  # seconds: of an epoch's evaluation, and to start and compile


def epochs(seconds, trainings, batch_size, most, rows):
    """Return how many epochs each of the trainings may have.

    Args:
        seconds: for all of them.
        trainings: names that end in "erm", "amp" or "cheap".
        batch_size: of a step.
        most: epochs at most.
        rows: of gpu_steps.py.
    """
    milliseconds = dict(MILLISECONDS)
    for row in rows:
        wanted = row.get("model") == "preactresnet18" and row.get("compiled") and row.get("dtype") == "bfloat16"
        if wanted and "ms" in row and row["variant"] in milliseconds:
            milliseconds[row["variant"]] = row["ms"]
    steps = IMAGES / batch_size
    epoch = sum(steps * milliseconds[VARIANTS[name.rpartition("_")[2]]] / 1e3 + EVALUATION for name in trainings)
    return max(FEWEST_EPOCHS, min(most, int((seconds - START * len(trainings)) / epoch)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("seconds", type=float, help="Time for all trainings together.")
    parser.add_argument("--steps_file", type=Path, required=True, help="What gpu_steps.py wrote, if it did.")
    parser.add_argument("--trainings", nargs="+", default=["erm", "amp"], help="Their names.")
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--most", type=int, default=60, help="Epochs at most.")
    options = parser.parse_args()
    lines = options.steps_file.read_text(encoding="utf-8").splitlines() if options.steps_file.exists() else ()
    print(epochs(options.seconds, options.trainings, options.batch_size, options.most, map(json.loads, lines)))


if __name__ == "__main__":
    main()

"""Is `AMPTrainer` slower than the plain two passes? Steps of both, with networks built anew in each repeat.

The steps of one network can all be a few per cent shorter or longer than those of an equal one, for as long as it lives
(where its tensors lie in memory may be why). `step_cost.py` keeps its networks for all repeats, so that this does not
average out there. Here each repeat builds a network for each of `Trainer`, `AMPTrainer` with N = 1 and the two plain
ones of `step_cost.py`, takes its steps and lets go of it; who comes first changes from repeat to repeat (--repeats best
is a multiple of 4). Given are, of the ratios within each repeat (of median steps), the median and the quartiles.

    python examples/benchmarks/plain_passes.py --models conv vit

Writes plain_passes.json to output_dir, after each network; those of former calls on the same device stay, and one that
is measured again is replaced. About memory allocation and threads see `step_cost.py`.
"""

import gc
import statistics
import tempfile

import torch
from authors_amp import PlainTwoPassTrainer
from step_cost import PlainLoop, TrainerRun, add_record, base_parser, build, quartiles
from tqdm.auto import tqdm

from hf_amp.vision.report.results import write_json

JSON_NAME = "plain_passes.json"
AMP = "AMPTrainer N=1"
BASES = ("Trainer", "plain two-pass Trainer", "plain two-pass loop")


def measure(name, options, output_dir):
    """Ratios of the steps of `AMPTrainer` to those of each of BASES: median, quartiles and the value of each repeat."""
    kinds = {
        AMP: lambda: TrainerRun(build(name), options, output_dir, amp_inner_iter=1),
        "Trainer": lambda: TrainerRun(build(name), options, output_dir),
        "plain two-pass Trainer": lambda: TrainerRun(build(name), options, output_dir, cls=PlainTwoPassTrainer),
        "plain two-pass loop": lambda: PlainLoop(build(name), options),
    }
    seconds = {label: [] for label in kinds}
    for repeat in tqdm(range(options.repeats), desc=name):
        first = repeat % len(kinds)
        for label in [*kinds, *kinds][first : first + len(kinds)]:
            torch._dynamo.reset()  # with --torch_compile, each network is compiled anew, as it is alone
            seconds[label].append(statistics.median(wall for wall, _ in kinds[label]().steps()))
            gc.collect()  # a Trainer and its callbacks hold each other
    rows = {}
    for base in BASES:
        ratios = [own / other for own, other in zip(seconds[AMP], seconds[base], strict=True)]
        rows[base] = {"ratio": statistics.median(ratios), "quartiles": quartiles(ratios), "ratios": ratios}
    return {"seconds": {label: statistics.median(own) for label, own in seconds.items()}, "rows": rows}


def table(models):
    lines = [f"| {AMP} over | {' | '.join(BASES)} |", f"|---|{'---|' * len(BASES)}"]
    for name, result in models.items():
        cells = [f"{name}, batch {result['batch_size']}, {result['repeats']} × {result['steps']}"]
        for row in result["rows"].values():
            low, high = row["quartiles"]
            cells.append(f"{row['ratio']:.3f} ({low:.3f}–{high:.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse():
    parser = base_parser(__doc__, "outputs/plain_passes")
    options = parser.parse_args()
    options.sync_debug = False
    add_record(options, parser, JSON_NAME)
    return options


def main():
    options = parse()
    for name in options.models:
        with tempfile.TemporaryDirectory() as output_dir:
            result = measure(name, options, output_dir)
        result |= {key: getattr(options, key) for key in ("batch_size", "steps", "repeats")}
        options.record["models"][name] = result
        write_json(options.output_dir / JSON_NAME, options.record)
    print("; ".join(f"{name} {value}" for name, value in options.conditions.items()))
    print(table(options.record["models"]))


if __name__ == "__main__":
    main()

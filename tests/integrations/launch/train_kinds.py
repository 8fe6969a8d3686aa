"""Trains kinds of `kinds.py` with AMP as a JSON file of cases says, in any number of processes.

Usage: train_kinds.py CASES.json OUTPUT_DIR. A case has a `name`, a `kind` and `arguments`. Rank r writes
OUTPUT_DIR/NAME.r.pt: the weights and the logs.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from kinds import KINDS, SEVERAL_PROCESSES

RANK = os.environ.get("RANK", "0")


def run(case, output):
    kind = (KINDS | SEVERAL_PROCESSES)[case["kind"]]
    trainer = kind(output / f"{case['name']}-{RANK}", "amp", **case["arguments"])
    trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    torch.save({"weights": weights, "logs": logs}, output / f"{case['name']}.{RANK}.pt")


if __name__ == "__main__":
    output = Path(sys.argv[2])
    for case in json.loads(Path(sys.argv[1]).read_text()):
        run(case, output)
    if dist.is_initialized():
        gc.collect()  # trainers refer to groups
        dist.destroy_process_group()

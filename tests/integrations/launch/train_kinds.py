"""Trains kinds of `kinds.py` as a JSON file of cases says, in any number of processes.

Usage: train_kinds.py CASES.json OUTPUT_DIR. A case has a `name`, a `kind`, `arguments` and perhaps a
`method` other than "amp". Rank r writes OUTPUT_DIR/NAME.r.pt: the weights of the model, of the loss, and the logs.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.extend(str(folder) for folder in Path(__file__).parents[1:3])
from kinds import KINDS, SEVERAL_PROCESSES

RANK = os.environ.get("RANK", "0")


def run(case, output):
    kind = (KINDS | SEVERAL_PROCESSES)[case["kind"]]
    trainer = kind(output / f"{case['name']}-{RANK}", case.get("method", "amp"), **case["arguments"])
    trainer.train()
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    loss = getattr(trainer, "loss", None)
    own = {name: value for name, value in loss.named_parameters() if "model" not in name} if loss else {}
    torch.save({"weights": weights, "loss": own, "logs": logs}, output / f"{case['name']}.{RANK}.pt")


if __name__ == "__main__":
    output = Path(sys.argv[2])
    for case in json.loads(Path(sys.argv[1]).read_text()):
        run(case, output)
    if dist.is_initialized():
        dist.barrier()  # gloo may abort a process that ends while the others still use its groups
        gc.collect()  # trainers refer to groups
        dist.destroy_process_group()

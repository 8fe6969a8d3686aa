"""Networks whose parameters Accelerate shards (FSDP2) over two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import SMALL_NAMES, images, small_network

# Runs in each process: one pass of every network, sharded, on this process's half of the images.
SHARDED = """
import gc
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from small_networks import SMALL_NAMES, images, small_network
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

# Accelerate shards on accelerators only, and silently replicates elsewhere; tell it that these processes are.
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
dist.init_process_group("gloo")
half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
pixel_values, labels = images(8)
found = {}
for name in SMALL_NAMES:
    AcceleratorState._reset_state(reset_partial_state=True)  # or the names of the first network's blocks stay
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(fsdp_plugin=plugin)
    model = small_network(name).eval()
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    accelerator.backward(model(pixel_values[half], labels=labels[half]).loss)
    found[name] = {
        "shards": [path for path, module in model.named_modules() if isinstance(module, FSDPModule)],
        "gradients": {key: parameter.grad.full_tensor() for key, parameter in model.named_parameters()},
    }
if dist.get_rank() == 0:
    torch.save(found, sys.argv[1])
dist.barrier()  # the first process that is gone may take the other with it
del found, accelerator, model, _  # they refer to the group, and in circles
gc.collect()
dist.destroy_process_group()  # and gloo may abort a process that ends before this, or before they are gone
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """Return, by network, what was sharded by itself and the gradients of one pass."""
    folder = tmp_path_factory.mktemp("sharded")
    (folder / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(folder / "sharded.py"), str(folder / "found.pt")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "found.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_sharded_network_has_the_gradients_of_the_whole_one(sharded, name):
    model = small_network(name).eval()
    pixel_values, labels = images(8)
    model(pixel_values, labels=labels).loss.backward()
    expected = {key: parameter.grad for key, parameter in model.named_parameters()}
    torch.testing.assert_close(sharded[name]["gradients"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL_NAMES)
def test_every_block_with_weights_is_a_shard_of_its_own(sharded, name):
    model = small_network(name)
    blocks = [path for path, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    assert blocks
    assert sharded[name]["shards"] == ["", *blocks]  # and the rest together

"""Two processes, by `accelerate launch`, train the weights of one process with the same batch."""

from pathlib import Path

import pytest
import torch
from launch.train_kinds import run
from test_launch import accelerate, launch

SCRIPT = Path(__file__).parent / "launch" / "train_kinds.py"
KINDS = ["SFT", "SFT, LoRA", "DPO", "CosineSimilarity", "MultipleNegativesRanking, gathered", "CrossEncoder"]
HALF = {"per_device_train_batch_size": 4}
# Without AMP, too, CrossEncoderTrainer fails with DDP's search for unused parameters: "marked as ready twice".
MORE = {"CrossEncoder": {"ddp_find_unused_parameters": False}}
HALF_AND_HALF = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CASES = [{"name": kind, "kind": kind, "arguments": HALF | MORE.get(kind, {})} for kind in KINDS] + [
    {"name": f"{kind} accumulated", "kind": kind, "arguments": HALF_AND_HALF} for kind in ("SFT", "CosineSimilarity")
]
CASES.append({"name": "SoftmaxLoss", "kind": "SoftmaxLoss", "arguments": HALF})
CASES.append({"name": "plain SoftmaxLoss", "kind": "SoftmaxLoss", "arguments": HALF, "method": "plain"})


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return launch(accelerate("two_cpu_processes.yaml"), CASES, tmp_path_factory.mktemp("launch") / "two", SCRIPT)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for kind in KINDS:
        run({"name": kind, "kind": kind, "arguments": {}}, folder)
    return {kind: torch.load(folder / f"{kind}.0.pt") for kind in KINDS}


def assert_trained_alike(processes, alone):
    assert len(processes) == 2
    for process in processes:
        assert (
            max((process["weights"][name] - value).abs().max().item() for name, value in alone["weights"].items())
            < 1e-5
        )
        for mine, other in zip(process["logs"], alone["logs"], strict=True):
            for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
                assert mine[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", [case["name"] for case in CASES if "SoftmaxLoss" not in case["name"]])
def test_two_processes_train_the_weights_of_one(name, two_processes, one_process):
    assert_trained_alike(two_processes[name], one_process[name.removesuffix(" accumulated")])


@pytest.mark.parametrize("name", ["SoftmaxLoss", "plain SoftmaxLoss"])
def test_the_parameters_of_a_loss_are_those_of_each_process_with_amp_or_without(name, two_processes):
    mine, other = two_processes[name]
    assert all(torch.equal(value, other["weights"][key]) for key, value in mine["weights"].items())
    assert not torch.equal(mine["loss"]["classifier.weight"], other["loss"]["classifier.weight"])

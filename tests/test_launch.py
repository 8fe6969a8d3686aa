"""Real launches of several processes, compared with one process."""

import functools
import inspect
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers.distributed import DistributedConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).parent / "launch" / "train_cases.py"
CONFIGS = ROOT / "examples" / "accelerate"

WHOLE = {"per_device_train_batch_size": 32}
PROCESSES = {"per_device_train_batch_size": 16}
BOTH = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
SETTINGS = [
    {"amp_epsilon": 0.1, "num_train_epochs": 2, "amp_inner_iter": inner_iter, "amp_norm": norm}
    for inner_iter in (1, 2)
    for norm in ("tensor", "global")
]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(command, cases, folder, script=SCRIPT):
    """Run the cases; return what each process wrote: {name: [process 0's, process 1's, …]}."""
    folder.mkdir(parents=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [*command, str(script), str(folder / "cases.json"), str(folder)],
        capture_output=True,
        text=True,
        timeout=900,  # for a machine that is busy with much else
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return {case["name"]: [torch.load(path) for path in sorted(folder.glob(f"{case['name']}.*.pt"))] for case in cases}


def accelerate(config):
    executable = str(Path(sys.executable).parent / "accelerate")
    return [executable, "launch", "--config_file", str(CONFIGS / config), "--main_process_port", free_port()]


def torchrun(count):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master_port", free_port()]


def difference(left, right):
    return max((left["state"][name] - right["state"][name]).abs().max().item() for name in left["state"])


def split_cases(**common):
    """The ways to cut a batch of 32 over two processes."""
    cases = []
    for i, settings in enumerate(SETTINGS):
        # 48 samples leave a short last window of 16 (for 2 × 16 Accelerate would fill it up with samples of the start).
        for name, split, samples in (("processes", PROCESSES, 64), ("both", BOTH, 48)):
            cases.append({"name": f"{name}-{i}", "settings": settings | split, "samples": samples, **common})
    return cases


def share_case(**common):
    """The ascent on half of the batch: the first of two micro-batches in each process, the first 16 samples of 32."""
    return {"name": "share", "settings": SETTINGS[1] | BOTH | {"amp_ascent_fraction": 0.5}, "samples": 64, **common}


def radius_case(**common):
    """A radius that follows over-fitting: random labels, learnt by heart."""
    settings = {"amp_epsilon": None, "eval_strategy": "epoch", "optim": "adamw_torch", "learning_rate": 0.03}
    case = {"name": "radius", "samples": 32, "held_out": 32, "config": {"width": 32}, **common}
    return {**case, "settings": settings | {"num_train_epochs": 30} | BOTH}


def ignored_items_cases():
    """The same trainings by a model that ignores the number of items, and by one without; Adam sees no difference."""
    unscaled = {"max_grad_norm": 0.0, "amp_inner_lr": 1e6, "num_train_epochs": 10}
    for scope in SCOPES:
        for model in ("ignores", "tiny"):
            case = radius_case(name=f"radius-{model}-{scope}", model=model)
            yield {**case, "settings": case["settings"] | unscaled | {"amp_scope": scope}}


def as_one_process(cases):
    kept = [{k: v for k, v in c["settings"].items() if k != "gradient_accumulation_steps"} | WHOLE for c in cases]
    return [
        {k: v for k, v in case.items() if k not in ("shards", "accelerate_shards")} | {"settings": settings}
        for case, settings in zip(cases, kept, strict=True)
    ]


DDP = {
    "view": {"gradient_as_bucket_view": True},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "small": {"bucket_cap_mb": 1},
}


# Gradients are sent rounded, with this relative error at most.
ROUNDING = {"fp16": 2**-11, "bf16": 2**-8}
REFUSED = {
    "static": ({"amp_scope": "micro_batch"}, {"ddp": DDP["static"]}, '"micro_batch"` with `ddp_static_graph`'),
    "power_sgd": ({}, {"ddp": {"comm_hook": "power_sgd"}}, "hook 'powerSGD_hook' with PowerSGDState: it carries"),
    "local_sgd": ({}, {"hook": "local_sgd"}, "hook 'post_localSGD_hook' with PostLocalSGDState: it counts passes"),
}
SCOPES = ("batch", "micro_batch")


def ddp_cases():
    """The options of DDP, its communication hooks, and those that are refused."""
    kinds = {name: {"ddp": options} for name, options in DDP.items() if name != "static"}
    kinds |= {"none": {}, "mean": {"hook": "mean"}, "fp16": {"ddp": {"comm_hook": "fp16"}}, "bf16": {"hook": "bf16"}}
    cases = [
        {"name": f"{name}-{scope}", "settings": SETTINGS[2] | BOTH | {"amp_scope": scope}, **kind}
        for name, kind in kinds.items()
        for scope in SCOPES
    ]
    # A static graph accumulates nothing, with plain Trainer neither.
    cases += [
        {"name": name, "settings": SETTINGS[2] | PROCESSES, **kind}
        for name, kind in (("none-whole", {}), ("static-whole", {"ddp": DDP["static"]}))
    ]
    cases += [
        {"name": f"refused-{name}", "settings": settings, "refused": True, **kind}
        for name, (settings, kind, _) in REFUSED.items()
    ]
    return cases


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """One launch for all that two CPU processes are asked."""
    window = {"amp_epsilon": 0.1, "logging_steps": 2}
    cases = [
        *split_cases(),
        *({**case, "name": f"counts-{case['name']}", "model": "counts"} for case in split_cases()[:2]),
        {"name": "own-delta", "settings": SETTINGS[0] | PROCESSES | {"amp_scope": "micro_batch"}, "samples": 64},
        *(
            {"name": f"calls-{scope}", "settings": SETTINGS[3] | BOTH | {"amp_scope": scope}, "count_calls": True}
            for scope in ("batch", "micro_batch")
        ),
        {"name": "calls-plain", "settings": SETTINGS[3] | BOTH, "count_calls": True, "trainer": "plain"},
        *(
            {"name": f"bad-{scope}", "model": "bad", "settings": SETTINGS[0] | PROCESSES | {"amp_scope": scope}}
            for scope in ("batch", "micro_batch")
        ),
        {"name": "bad-one-step", "model": "bad", "settings": SETTINGS[0] | PROCESSES | {"max_steps": 1}},
        {"name": "plain-one-step", "settings": SETTINGS[0] | PROCESSES | {"max_steps": 1}, "trainer": "plain"},
        *(
            {
                "name": f"norm-{stats}",
                "config": {"batch_norm": True},
                "settings": SETTINGS[2] | BOTH | {"amp_norm_stats": stats},
            }
            for stats in ("every_pass", "clean", "descent")
        ),
        {"name": "logs", "settings": window | PROCESSES | {"num_train_epochs": 2}, "samples": 64},
        share_case(),
        share_case(name="share-counts", model="counts"),
        radius_case(),
        radius_case(name="radius-apart", apart=True),
        *ignored_items_cases(),
        *ddp_cases(),
    ]
    return launch(accelerate("two_cpu_processes.yaml"), cases, tmp_path_factory.mktemp("launch") / "two")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One launch for all that one process is asked."""
    cases = as_one_process([*split_cases(), share_case(), radius_case()])
    logs = {"amp_epsilon": 0.1, "logging_steps": 2, "num_train_epochs": 2} | WHOLE
    cases.append({"name": "logs", "settings": logs, "samples": 64})
    in_float32 = as_one_process([*split_cases(dtype="float32"), share_case(dtype="float32")])
    cases += [{**case, "name": f"float32-{case['name']}"} for case in in_float32]
    return launch(accelerate("one_process.yaml"), cases, tmp_path_factory.mktemp("launch") / "one")


@pytest.fixture(scope="module")
def one_process(alone):
    return {name: trained for name, trained in alone.items() if not name.startswith("float32-")}


@pytest.fixture(scope="module")
def one_process_in_float32(alone):
    return {name.removeprefix("float32-"): trained for name, trained in alone.items() if name.startswith("float32-")}


@pytest.mark.parametrize("case", [case["name"] for case in split_cases()])
def test_two_processes_train_the_weights_of_one(two_processes, one_process, case):
    for process in two_processes[case]:
        assert difference(process, one_process[case][0]) <= 1e-12


@pytest.mark.parametrize("case", [case["name"] for case in split_cases()[:2]])
def test_so_do_models_that_use_the_number_of_items(two_processes, one_process, case):
    assert difference(two_processes[f"counts-{case}"][0], one_process[case][0]) <= 1e-12


@pytest.mark.parametrize("case", ["share", "share-counts"])
def test_two_processes_take_the_same_share_of_the_batch_as_one(two_processes, one_process, case):
    for process in two_processes[case]:
        assert difference(process, one_process["share"][0]) <= 1e-12
        for mine, alone in zip(process["logs"], one_process["share"][0]["logs"], strict=True):
            for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
                assert mine[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6)


def test_two_processes_follow_overfitting_as_one_does(two_processes, one_process):
    radii = [entry["amp_epsilon"] for entry in one_process["radius"][0]["logs"]]
    assert max(radii) > 0.1
    for process in (*two_processes["radius"], *two_processes["radius-apart"]):
        assert [entry["amp_epsilon"] for entry in process["logs"]] == pytest.approx(radii, abs=1e-5)
        assert difference(process, one_process["radius"][0]) <= 1e-4


@pytest.mark.parametrize("scope", SCOPES)
def test_a_loss_that_grows_with_the_processes_does_not_change_the_radius(two_processes, scope):
    ignores, tiny = (
        [entry["amp_epsilon"] for entry in two_processes[f"radius-{model}-{scope}"][0]["logs"]]
        for model in ("ignores", "tiny")
    )
    assert ignores == pytest.approx(tiny, abs=1e-3)
    assert max(tiny) > 0.02


def test_each_process_has_its_own_delta_in_scope_micro_batch(two_processes):
    mine, other = two_processes["own-delta"]
    assert difference(mine, other) == 0.0
    assert difference(mine, two_processes["processes-0"][0]) > 1e-6


def test_replicas_stay_bit_identical(two_processes):
    for name, (first, second) in two_processes.items():
        if name.startswith("refused"):
            continue
        parameters = {k: v for k, v in first["state"].items() if "running" not in k}
        assert all(torch.equal(value, second["state"][k]) for k, value in parameters.items()), name


def test_scope_micro_batch_adds_no_collective_call_to_a_step(two_processes):
    plain, own = two_processes["calls-plain"], two_processes["calls-micro_batch"]
    for process in (0, 1):
        assert sum(plain[process]["calls"].values()) > 0
        assert own[process]["calls"] == plain[process]["calls"]


def test_scope_batch_adds_the_calls_of_one_backward_pass_per_inner_iteration(two_processes):
    plain, whole = two_processes["calls-plain"], two_processes["calls-batch"]  # N = 2
    assert whole[0]["calls"] == {name: 3 * count for name, count in plain[0]["calls"].items()}


def test_a_bad_gradient_in_one_process_gives_a_plain_step_on_every_process(two_processes):
    for process in two_processes["bad-batch"]:
        assert [entry["skipped_ascents"] for entry in process["logs"]][:2] == [1.0, 0.0]
        assert all(value.isfinite().all() for value in process["state"].values())
    for process, plain in zip(two_processes["bad-one-step"], two_processes["plain-one-step"], strict=True):
        assert difference(process, plain) == 0.0
    own = two_processes["bad-micro_batch"][0]["logs"][0]
    assert own["skipped_ascents"] == 0.5  # one of two processes


@pytest.mark.parametrize(("stats", "updates"), [("every_pass", 18), ("clean", 6), ("descent", 6)])
def test_norm_stats_are_updated_in_the_passes_that_are_named(two_processes, stats, updates):
    # Two epochs of 48 samples, 8 a process and micro-batch, are 6 micro-batches with 3 passes each (N = 2).
    assert two_processes[f"norm-{stats}"][0]["state"]["norm.num_batches_tracked"] == updates


def test_figures_are_averaged_over_processes_as_the_loss_is(two_processes, one_process):
    for mine, other, alone in zip(
        *(p["logs"] for p in two_processes["logs"]), one_process["logs"][0]["logs"], strict=True
    ):
        assert mine == other
        for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
            assert mine[name] == pytest.approx(alone[name], rel=1e-4)


def assert_trained_alike(processes, alone):
    for process in processes:
        assert difference(process, alone) <= 1e-6
        for mine, other in zip(process["logs"], alone["logs"], strict=True):
            for name in ("loss", "erm_loss", "sharpness", "perturbation_norm"):
                assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)


SHARDS = {
    "two": (2, {"fsdp_size": 2}),
    "two replicas": (2, {"fsdp_size": 1, "dp_replicate_size": 2}),
    "two replicas of two": (4, {"fsdp_size": 2, "dp_replicate_size": 2}),
}
FORGETS_FAILED_PASSES = hasattr(FSDPModule, "reset_iter_state")  # since torch 2.13


def missing_for_shards(options):
    """Why a model cannot shard itself when it is loaded, or not with these options; None where it can."""
    there = inspect.signature(DistributedConfig).parameters
    missing = [option for option in ("fsdp_size", *options) if option not in there]
    if missing:
        return f"DistributedConfig of transformers {transformers.__version__} takes no {missing[0]}"
    if "fsdp_plan" not in there:
        return f"transformers {transformers.__version__} shards only models whose class has a plan for it"
    if torch.__version__ < (2, 8):
        return f"in transformers FSDP2 asks for torch 2.8, this is {torch.__version__}"
    return None


BETWEEN = {"tiny": ("evaluate", "forward", "save", "fail"), "llama": ("evaluate", "generate")}


def between_cases(**common):
    """Trainings alike but for passes between their steps, over models whose outermost module has parameters."""
    settings = SETTINGS[0] | {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 3}
    cases = []
    for model, kinds in BETWEEN.items():
        case = {"model": model, "settings": settings, "samples": 64, "dtype": "float32", **common}
        cases.append(case | {"name": f"{model}-undisturbed"})
        cases += [case | {"name": f"{model}-{kind}", "between": kind} for kind in kinds]
    return cases


def assert_undisturbed(trained):
    for model, kinds in BETWEEN.items():
        assert trained[f"{model}-undisturbed"][0]["logs"][0]["perturbation_norm"] > 0
        for kind in kinds:
            if (name := f"{model}-{kind}") not in trained:
                continue  # left out, see those who ask
            for mine, alone in zip(trained[name], trained[f"{model}-undisturbed"], strict=True):
                assert difference(mine, alone) == 0.0, (model, kind)


def without_failures(cases):
    return [case for case in cases if FORGETS_FAILED_PASSES or case.get("between") != "fail"]


def skip_without_means(folder):
    """Skip where gloo, which CI uses in place of NCCL, gives FSDP2 a sum for the mean that it asks for."""
    if not torch.load(folder / "means.0.pt") and torch.__version__ < (2, 13):
        pytest.skip(f"gloo of torch {torch.__version__} takes no means")


def shard_cases(kind):
    """All that is asked of models which shard themselves so."""
    count, options = SHARDS[kind]
    common = {"dtype": "float32", "shards": options}
    cases = [*split_cases(**common), share_case(**common)]
    for case in cases:
        case["settings"]["per_device_train_batch_size"] //= count // 2
    if count == 2:  # "save" is left to Trainer's own rules there: it needs a model that can be gathered.
        cases += [case for case in without_failures(between_cases(shards=options)) if case.get("between") != "save"]
    cases.append({"name": "refused", "settings": {"amp_scope": "micro_batch"}, "shards": options, "refused": True})
    return [case | {"name": f"{kind}: {case['name']}"} for case in cases]


@pytest.fixture(scope="module")
def launches_of_shards(tmp_path_factory):
    """One launch for each number of processes: what came of it, and its folder."""

    @functools.cache
    def launched(count):
        kinds = [k for k, (size, options) in SHARDS.items() if size == count and not missing_for_shards(options)]
        folder = tmp_path_factory.mktemp("launch") / "shards"
        return launch(torchrun(count), [case for kind in kinds for case in shard_cases(kind)], folder), folder

    return launched


@pytest.fixture(scope="module", params=SHARDS)
def shards(request, launches_of_shards):
    """What came of one kind of shards, and the folder of its launch."""
    count, options = SHARDS[request.param]
    if missing := missing_for_shards(options):
        pytest.skip(missing)
    launched, folder = launches_of_shards(count)
    prefix = f"{request.param}: "
    trained = {name.removeprefix(prefix): value for name, value in launched.items() if name.startswith(prefix)}
    assert all(len(processes) == count for processes in trained.values())
    return trained, folder


def test_fsdp2_trains_the_weights_of_one_process(one_process_in_float32, shards):
    trained, folder = shards
    skip_without_means(folder)
    for case in (*split_cases(), share_case()):
        assert_trained_alike(trained[case["name"]], one_process_in_float32[case["name"]][0])


def test_scope_micro_batch_is_refused_with_shards(shards):
    for message in shards[0]["refused"]:
        assert re.search(r'"micro_batch"` with sharded parameters.*use amp_scope="batch"', message)


@pytest.mark.parametrize("shards", ["two", "two replicas"], indirect=True)
def test_passes_between_the_steps_of_a_model_that_shards_itself_change_nothing(shards):
    assert_undisturbed(shards[0])


@pytest.fixture(scope="module", params=[1, 2], ids=["sharded", "sharded and replicated"])
def accelerate_shards(request, tmp_path_factory):
    """One launch for all that Accelerate shards over two processes, or over each two of four: its cases and folder."""
    replicas = request.param
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())
    config |= {"use_cpu": True, "num_processes": 2 * replicas, "mixed_precision": "no"}
    if replicas > 1:
        sizes = {"dp_replicate_size": replicas, "dp_shard_size": 2}
        config["parallelism_config"] = {f"parallelism_config_{name}": size for name, size in sizes.items()}
    folder = tmp_path_factory.mktemp("launch")
    (folder / "on_cpu.yaml").write_text(yaml.safe_dump(config))
    cases = split_cases(dtype="float32", accelerate_shards=True)
    for case in cases:
        case["settings"]["per_device_train_batch_size"] //= replicas
    cases += without_failures(between_cases(accelerate_shards=True))
    return launch(accelerate(folder / "on_cpu.yaml"), cases, folder / "shards"), folder / "shards", replicas


def test_passes_between_the_steps_of_a_model_that_accelerate_shards_change_nothing(accelerate_shards):
    assert_undisturbed(accelerate_shards[0])


def test_fsdp2_of_accelerate_trains_and_saves_the_weights_of_one_process(accelerate_shards, one_process_in_float32):
    trained, folder, replicas = accelerate_shards
    skip_without_means(folder)
    for case in split_cases():
        name = case["name"]
        assert len(trained[name]) == 2 * replicas
        assert {process["replicas"] for process in trained[name]} == {replicas}
        assert_trained_alike(trained[name], one_process_in_float32[name][0])
        saved = load_file(folder / f"{name}-model" / "model.safetensors")
        assert all(torch.equal(value, saved[name]) for name, value in trained[name][0]["state"].items())


@pytest.mark.parametrize(
    "case", ["static-whole", *(f"{n}-{s}" for n in ("view", "unused", "small", "mean") for s in SCOPES)]
)
def test_options_and_hooks_of_ddp_that_send_all_change_nothing(two_processes, case):
    for mine, other in zip(two_processes[case], two_processes[f"none-{case.partition('-')[2]}"], strict=True):
        assert difference(mine, other) <= 1e-12


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("hook", ROUNDING)
def test_hooks_that_send_half_precision_train_the_same_weights_but_for_rounding(two_processes, hook, scope):
    for mine, other in zip(two_processes[f"{hook}-{scope}"], two_processes[f"none-{scope}"], strict=True):
        assert 1e-7 < difference(mine, other) <= 0.1 * ROUNDING[hook]  # 0.1 is the learning rate
        assert [entry["skipped_ascents"] for entry in mine["logs"]] == [0.0] * len(other["logs"])


def test_scopes_differ_in_two_processes(two_processes):
    assert difference(two_processes["none-batch"][0], two_processes["none-micro_batch"][0]) > 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_options_and_hooks_of_ddp_that_would_be_wrong_are_refused(two_processes, name):
    assert all(REFUSED[name][2] in message for message in two_processes[f"refused-{name}"])

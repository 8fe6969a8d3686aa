"""Each trainer of `kinds.py` with AMP: off when ε = 0, θ outside the step, two passes, resume.

A row of the table in `examples/TRAINERS.md` names the kinds here that show it.
"""

from itertools import pairwise

import pytest
import torch
from kinds import KINDS, SEVERAL_PROCESSES
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_amp.radius_rule import FIRST

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_") and name != "on_init_end"]


def weights_of(model):
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def everything_trained(trainer):
    """Weights of the model, and of a loss that has some of its own."""
    loss = getattr(trainer, "loss", None)
    more = weights_of(loss) if isinstance(loss, torch.nn.Module) else {}
    return weights_of(trainer.model) | {f"loss.{name}": value for name, value in more.items()}


def difference(left, right):
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class Watcher(TrainerCallback):
    """Keeps the weights that every callback sees."""

    def __init__(self):
        self.seen = []


def _see(event):
    def see(self, args, state, control, model=None, **kwargs):
        self.seen.append((event, weights_of(model)))

    return see


for event in EVENTS:
    setattr(Watcher, event, _see(event))


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request):
    return KINDS[request.param]


@pytest.fixture(scope="module")
def amp_run(kind, tmp_path_factory):
    """One AMP training with a checkpoint after two of its four steps."""
    folder = tmp_path_factory.mktemp("amp")
    trainer = kind(folder, "amp", save_strategy="steps", save_steps=2, save_total_limit=2)
    start, watcher = everything_trained(trainer), Watcher()
    trainer.add_callback(watcher)
    trainer.train()
    return {
        "folder": folder,
        "start": start,
        "end": everything_trained(trainer),
        "trainer": trainer,
        "seen": watcher.seen,
    }


def test_epsilon_0_is_bit_identical_to_the_plain_class(kind, amp_run, tmp_path):
    plain, off = kind(tmp_path / "plain", "plain"), kind(tmp_path / "off", "amp", amp_epsilon=0.0)
    assert difference(everything_trained(off), amp_run["start"]) == 0.0
    plain.train()
    off.train()
    assert difference(everything_trained(plain), everything_trained(off)) == 0.0
    assert losses_of(plain) == losses_of(off)
    assert difference(everything_trained(off), amp_run["end"]) > 1e-5


def test_callbacks_see_theta(amp_run):
    """Weights change between an optimizer step's begin and end and nowhere else: no callback sees θ + Δ."""
    seen = amp_run["seen"]
    for (_, before), (event, after) in pairwise(seen):
        moved = difference(before, after)
        assert (moved > 0.0) if event == "on_optimizer_step" else (moved == 0.0), event
    assert sum(event == "on_optimizer_step" for event, _ in seen) == 4
    assert sum(event == "on_save" for event, _ in seen) == 2


def test_a_step_is_two_passes_written_by_hand(kind, amp_run, tmp_path):
    by_hand = kind(tmp_path, "by_hand")
    by_hand.train()
    assert difference(everything_trained(by_hand), amp_run["end"]) <= 1e-5
    assert losses_of(amp_run["trainer"]) == pytest.approx(losses_of(by_hand), abs=1e-4)  # rounded by some trainers


def test_the_figures_of_amp_are_logged_in_each_step(amp_run):
    logs = [entry for entry in amp_run["trainer"].state.log_history if "loss" in entry]
    assert len(logs) == 4
    for entry in logs:
        assert {"erm_loss", "sharpness", "perturbation_norm", "skipped_ascents"} <= entry.keys()
        assert entry["perturbation_norm"] > 0.0


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(kind, amp_run, tmp_path):
    is_saved = kind is not KINDS["SoftmaxLoss"]  # whose parameters sentence-transformers leaves out, see the next test
    resumed = kind(tmp_path, "amp")
    resumed.train(resume_from_checkpoint=str(amp_run["folder"] / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert (difference(everything_trained(resumed), amp_run["end"]) <= 1e-7) == is_saved


def test_the_plain_class_does_not_save_the_parameters_of_a_loss_either(tmp_path):
    whole = KINDS["SoftmaxLoss"](tmp_path, "plain", save_strategy="steps", save_steps=2)
    whole.train()
    resumed = KINDS["SoftmaxLoss"](tmp_path / "resumed", "plain")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert difference(everything_trained(resumed), everything_trained(whole)) > 1e-3


def evaluating(kind, output_dir):
    """A trainer with nothing set that evaluates after the second and the fourth step."""
    trainer = kind(output_dir, "amp", amp_epsilon=None)
    trainer.eval_dataset, trainer.args.eval_strategy = trainer.train_dataset, IntervalStrategy.STEPS
    trainer.args.eval_steps = 2
    return trainer


@pytest.mark.parametrize("name", ["CosineSimilarity", "PEFT, LoRA"])
def test_with_nothing_set_a_regression_stays_plain(name, tmp_path, caplog):
    trainer = evaluating((KINDS | SEVERAL_PROCESSES)[name], tmp_path)
    with caplog.at_level("WARNING"):
        trainer.train()
    assert caplog.text.count("the labels are continuous") == 1
    assert not [entry for entry in trainer.state.log_history if "sharpness" in entry]


def test_with_nothing_set_the_radius_follows_the_evaluation_loss(kind, tmp_path, monkeypatch):
    trainer = evaluating(kind, tmp_path)
    if kind in (KINDS["PEFT, LoRA"], KINDS["PEFT, DoRA"]):  # a regression, else
        trainer.model.config.problem_type = "multi_label_classification"
    own, held_out = type(trainer).held_out_loss, []

    def worse(self, metrics):
        held_out.append(own(self, metrics))
        return 10.0 + held_out[-1]

    monkeypatch.setattr(type(trainer), "held_out_loss", worse)
    trainer.train()
    assert len(held_out) == 2
    radii = [entry["amp_epsilon"] for entry in trainer.state.log_history if "amp_epsilon" in entry]
    norms = [entry.get("perturbation_norm", 0.0) for entry in trainer.state.log_history if "loss" in entry]
    assert radii[:3] == [0.0, 0.0, FIRST]
    assert norms[:2] == [0.0, 0.0]
    assert norms[2] > 0


@pytest.mark.parametrize(("size", "said"), [(4, False), (3, True)])
def test_batches_of_another_size_in_evaluation_are_said_where_the_loss_depends_on_it(tmp_path, caplog, size, said):
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": size}
    trainer = KINDS["MultipleNegativesRanking"](tmp_path, "amp", amp_epsilon=None, **sizes)
    trainer.eval_dataset, trainer.args.eval_strategy = trainer.train_dataset, IntervalStrategy.EPOCH
    trainer.train()
    assert ("batches have 4 samples in training and 3 in evaluation" in caplog.text) == said

"""The cards that the image-classification commands write into each seed's folder."""

import json

import pytest
import torch
from commands import classify, compare
from hub_server.cards import check_card
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from hf_amp.hub.card import is_untouched
from hf_amp.vision.train.facts import describe_data
from hf_amp.vision.train.images import DataArguments

pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable")
LONGER = ("--save_strategy", "epoch", "--num_train_epochs", "4", "--learning_rate", "0.3", "--save_total_limit", "10")


def card_of(folder, seed=42):
    card = (folder / f"seed_{seed}" / "README.md").read_text()
    assert check_card(card) == ([], [])
    assert is_untouched(card)
    return card


def row(weights, metrics):
    accuracy, error, ece = (f"{100 * metrics[name]:.2f} %" for name in ("accuracy", "error_rate", "ece"))
    return f"| {weights} | {accuracy} | {error} | {metrics['nll']:.4f} | {ece} |"


@pytest.fixture(scope="module")
def with_validation(tmp_path_factory):
    """A run whose best epoch is not its last, most likely; which it is, its results say."""
    folder = tmp_path_factory.mktemp("amp")
    flags = ("--method", "amp", "--amp_epsilon", "0.1", "--validation_fraction", "0.3", "--license", "mit")
    return folder, classify(folder, *flags, "--label_noise", "0.2", *LONGER)


def test_last_and_best_are_apart_in_table_and_model_index(with_validation):
    folder, results = with_validation
    card, run = card_of(folder), results["runs"][0]
    best = f"epoch {run['best_epoch']:g}, the best on the validation images"
    assert row("last epoch | test", run["test"]["last"]) in card
    assert row(f"{best} | test", run["test"]["best"]) in card
    assert row("last epoch | validation", run["validation"]) in card
    values = {(one.dataset_split, one.metric_name): one.metric_value for one in ModelCard(card).data.eval_results}
    assert values["test", "error rate, last epoch"] == run["test"]["last"]["error_rate"]
    assert values["test", f"error rate, {best}"] == run["test"]["best"]["error_rate"]
    assert len(values) == 12


def test_how_it_was_made_and_what_to_mind(with_validation):
    folder, results = with_validation
    card = card_of(folder)
    for said in (
        "license: mit",
        "- adversarial-model-perturbation",
        "| `amp_epsilon` | `0.1` |",
        "| optimizer | SGD, lr = 0.3, momentum = 0.9, nesterov = True |",
        "| learning rate | 0.3, divided by 10 at 50 % and at 75 % of the training |",
        "- 20% of the training labels were replaced at random on purpose",
        "- It was trained on a part of the data set",
        "- The results are those of one training with one seed.",
        'subfolder="best"',
        'pipeline("image-classification"',
        f"torch {results['versions']['torch']}",
        "![Learning curves](learning_curves.png)",
    ):
        assert said in card, said
    assert "chosen on the test images" not in card
    assert ModelCard(card).data.datasets is None, "scikit-learn's digits are not on the Hub"
    facts = json.loads((folder / "seed_42" / "card.json").read_text())
    assert facts["evaluations"][0]["metrics"] == results["runs"][0]["test"]["last"]


def test_the_published_weights_are_those_of_the_last_epoch(with_validation):
    folder, results = with_validation
    seed, run = folder / "seed_42", results["runs"][0]
    published, best = load_file(seed / "model.safetensors"), load_file(seed / "best" / "model.safetensors")
    last = load_file(seed / f"checkpoint-{run['steps']}" / "model.safetensors")
    assert all(torch.equal(published[name], tensor) for name, tensor in last.items())
    at_best = [point["step"] for point in run["curves"] if point["epoch"] == run["best_epoch"]]
    kept = load_file(seed / f"checkpoint-{at_best[0]}" / "model.safetensors")
    assert all(torch.equal(best[name], tensor) for name, tensor in kept.items())


def test_the_best_weights_are_another_epoch_where_training_gets_worse(tmp_path):
    flags = ("--method", "erm", "--lr_schedule", "trainer", "--lr_scheduler_type", "constant", "--learning_rate", "3")
    run = classify(tmp_path, *LONGER, *flags)["runs"][0]
    assert run["best_epoch"] < run["epochs"], "a rate of 3 must spoil the weights sooner or later"
    last = load_file(tmp_path / "seed_42" / "model.safetensors")
    best = load_file(tmp_path / "seed_42" / "best" / "model.safetensors")
    assert any(not torch.equal(last[name], tensor) for name, tensor in best.items())
    checkpoint = load_file(tmp_path / "seed_42" / f"checkpoint-{run['steps']}" / "model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in checkpoint.items())


@pytest.mark.parametrize(
    ("method", "tags", "said"),
    [
        ("erm", ["hf_amp"], "without adversarial model perturbation, with plain empirical risk minimisation."),
        ("sam", ["hf_amp", "sharpness-aware-minimization"], "with sharpness-aware minimisation (SAM)"),
        ("rmp", ["hf_amp"], "with random model perturbation (RMP)"),
        ("label_smoothing", ["hf_amp"], "with label smoothing (smoothing = 0.2)"),
    ],
)
def test_other_methods_do_not_claim_the_perturbation(tmp_path, method, tags, said):
    classify(tmp_path, "--method", method, "--num_train_epochs", "1")
    card = card_of(tmp_path)
    assert ModelCard(card).data.tags == tags
    assert said in card
    assert "setting of adversarial model perturbation" not in card
    assert "The best epoch was chosen on the test images themselves" in card


def test_where_images_came_from():
    local = describe_data(DataArguments(dataset="cifar10", dataset_path="x"), "test", {"train": 9, "test": 3})
    assert (local.name, local.type, local.hub_id) == ("CIFAR-10 (local files)", "cifar10", None)
    assert any("local files" in one for one in local.caveats)
    hub = describe_data(DataArguments(dataset="ufldl-stanford/svhn"), "test", {"train": 9, "test": 3})
    assert (hub.name, hub.type, hub.config) == ("SVHN", "ufldl-stanford/svhn", "cropped_digits")
    own = describe_data(DataArguments(dataset="user/own"), "validation", {"train": 9, "validation": 3})
    assert (own.name, own.type, own.hub_id, own.config) == ("user/own", "user/own", "user/own", None)
    assert own.facts["data"] == "9 train, 3 validation images"


def test_a_comparison_is_in_the_cards_of_all_that_were_compared(tmp_path):
    flags = ("--methods", "erm", "amp:amp_epsilon=0.1", "--label_noise", "0", "0.2", "--seeds", "0", "1")
    content = compare(tmp_path, *flags, "--num_train_epochs", "1")
    for line in content["rows"]:
        rivals = [one for one in content["rows"] if one["label_noise"] == line["label_noise"]]
        for seed in (0, 1):
            card = card_of(tmp_path / f"noise{line['label_noise']:g}" / line["folder"].rpartition("/")[2], seed)
            for one in rivals:
                error = one["summary"]["last"]["error_rate"]
                cells = f"{100 * error['mean']:.2f} ± {100 * error['standard_error']:.2f}"
                assert f"| {one['label']} | 2 | {cells} |" in card
            assert card.count("| 2 | ") == 2
    changed = tmp_path / "noise0" / "erm" / "seed_0" / "README.md"
    changed.write_text("# Mine\n")
    compare(tmp_path, *flags, "--num_train_epochs", "1")
    assert changed.read_text() == "# Mine\n"


def test_a_comparison_publishes_nothing_by_itself(tmp_path):
    with pytest.raises(SystemExit, match=r"`push_to_hub` would publish every run.*python -m hf_amp\.push"):
        compare(tmp_path, "--methods", "erm", "amp", "--label_noise", "0", "--push_to_hub")

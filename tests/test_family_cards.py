"""The cards of the recipe families: what was measured is shown, what was not is said."""

import json
from pathlib import Path

import pytest
from commands import classify, load_example
from hub_server.cards import check_card
from huggingface_hub import ModelCard

import hf_amp
from hf_amp.vision.family_cards import FAMILIES, NOT_MEASURED, Family, family_card, find_results
from hf_amp.vision.recipes import RECIPES
from hf_amp.vision.results import summarise

CARDS = Path(__file__).parent.parent / "model_cards"
CIFAR = Family("preactresnet18", "cifar10")
ONE = ("--num_train_epochs", "1", "--max_train_samples", "60", "--use_cpu", "--dataset", "digits")


def write_cards(*words):
    return load_example("model_cards").main([str(word) for word in words])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A real result of two seeds, with the settings of the recipe in place of its own."""
    small = json.dumps({"stem_size": 4, "hidden_sizes": [4], "depths": [1]})
    found = classify(tmp_path_factory.mktemp("run"), "--model_args", small, "--seeds", "0", "1", base=ONE)
    recipe = RECIPES["cifar10_preactresnet18_amp"].settings
    plain = {"max_train_samples": None, "model_args": {}, "scale": 1.0, "label_noise": 0.0}
    settings = {**found["settings"], **recipe, **plain}
    return {**found, **{name: recipe[name] for name in ("dataset", "model", "method")}, "settings": settings}


def rows_of(card, name):
    return [line for line in card.splitlines() if line.startswith(f"| `{name}` |")]


def test_the_committed_cards_are_what_the_command_writes_without_results(tmp_path):
    written = write_cards("--output_dir", tmp_path)
    assert len(written) == 12
    assert {path.name for path in written} == {path.name for path in CARDS.glob("*.md")} - {"template.md"}
    for path in written:
        assert path.read_text() == (CARDS / path.name).read_text(), path.name


def test_the_template_is_that_of_the_package():
    package = Path(hf_amp.__file__).parent / "hub" / "templates" / "model_card.md"
    assert (CARDS / "template.md").read_text() == package.read_text()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_card_without_results_holds_no_figure_of_any(family):
    card = family_card(family, [])
    assert check_card(card) == ([], [])
    data = ModelCard(card).data
    assert data.eval_results is None
    assert data.tags == ["adversarial-model-perturbation", "hf_amp"]
    for recipe in family.recipes:
        (row,) = rows_of(card, recipe.name)
        assert row.endswith(f"| {NOT_MEASURED} | – | – | – | – |")
        assert f"{recipe.published.error}" not in row


def test_parameters_are_those_that_were_counted_by_hand():
    counts = {family.name: family.parameters for family in FAMILIES}
    assert counts["cifar10_preactresnet18"] == 11_172_170
    assert counts["cifar10_wideresnet28_10"] == 36_479_194
    assert counts["cifar10_pyramidnet164_270"] == 27_216_021
    assert counts["cifar100_preactresnet18"] == 11_172_170 + 90 * 513
    assert "(11,172,170 parameters)" in family_card(CIFAR, [])


def test_a_result_is_shown_with_its_error_command_and_versions(measured):
    card = family_card(CIFAR, [measured])
    assert check_card(card) == ([], [])
    last, best = rows_of(card, "cifar10_preactresnet18_amp")
    error = measured["summary"]["last"]["error_rate"]
    assert f"| last epoch | 2 | {100 * error['mean']:.2f} ± {100 * error['standard_error']:.2f} |" in last
    assert "| best epoch on test | 2 |" in best
    assert f"`{measured['command']}`; seeds 0 1" in card
    assert f"torch {measured['versions']['torch']}" in card
    values = {one.metric_name: one.metric_value for one in ModelCard(card).data.eval_results}
    assert values["error rate, cifar10_preactresnet18_amp, last epoch"] == error["mean"]
    assert len(values) == 8
    assert rows_of(card, "cifar10_preactresnet18_erm")[0].endswith(f"{NOT_MEASURED} | – | – | – | – |")


def test_results_of_other_data_networks_and_augmentations_are_not_used(measured):
    plain = family_card(CIFAR, [])
    others = [{**measured, name: "other"} for name in ("dataset", "model", "method")]
    others.append({**measured, "settings": {**measured["settings"], "augmentation": "cutout"}})
    assert family_card(CIFAR, others) == plain


def test_what_departs_from_the_recipe_is_named(measured):
    changes = {"num_train_epochs": 3, "label_noise": 0.2, "bf16": True, "dataset_path": "/home/me/data"}
    changed = {**measured, "settings": {**measured["settings"], **changes}}
    card = family_card(CIFAR, [changed])
    last = rows_of(card, "cifar10_preactresnet18_amp")[0]
    for part in ("num_train_epochs = 3", "label_noise = 0.2", "bf16 = True", "dataset_path = local files"):
        assert part in last
    assert "/home/me" not in card


def test_a_metric_that_is_missing_is_no_result(measured):
    runs = [{**run, "test": {"last": {**run["test"]["last"], "nll": None}, "best": None}} for run in measured["runs"]]
    card = family_card(CIFAR, [{**measured, "runs": runs, "summary": summarise(runs)}])
    (row,) = rows_of(card, "cifar10_preactresnet18_amp")
    assert row.split(" | ")[-2] == "–"
    assert {one.metric_type for one in ModelCard(card).data.eval_results} == {"accuracy", "error_rate", "ece"}


def test_results_are_found_in_folders_and_must_be_complete(measured, tmp_path):
    for name, content in (("whole", measured), ("half", {**measured, "complete": False}), ("seed", {"seed": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    assert find_results([tmp_path]) == [json.loads(json.dumps(measured))]
    written = write_cards(tmp_path / "whole" / "results.json", "--output_dir", tmp_path / "cards")
    assert "± " in (tmp_path / "cards" / "cifar10_preactresnet18.md").read_text()
    assert len(written) == 12
    with pytest.raises(SystemExit, match=r"`results` must name files or folders, got .*nowhere"):
        write_cards(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="is no result of examples/image_classification"):
        write_cards(tmp_path / "seed" / "results.json")

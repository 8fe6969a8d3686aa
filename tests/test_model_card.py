"""Facts become a card that the Hub takes, and nothing but facts."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hub_server.cards import check_card
from huggingface_hub import ModelCard

from hf_amp.hub.card import (
    CardFacts,
    Evaluation,
    eval_results,
    is_untouched,
    moved_to,
    own_tags,
    render_card,
    seal,
)
from hf_amp.hub.section import with_section

LEAST = CardFacts(
    model_name="m", repo_id="user/m", summary="A model.", method="Trained somehow.", usage='load("user/m")'
)
FULL = replace(
    LEAST,
    perturbed=True,
    pipeline_tag="image-classification",
    license="mit",
    language="en",
    base_model="user/base",
    tags=("vision", "hf_amp"),
    datasets=("uoft-cs/cifar10",),
    dataset_name="CIFAR-10",
    dataset_type="uoft-cs/cifar10",
    dataset_config="plain_text",
    evaluations=(
        Evaluation("last epoch", "test", {"accuracy": 0.9, "error_rate": 0.1, "nll": 0.5, "ece": 0.02}),
        Evaluation("best epoch", "test", {"accuracy": 0.92, "error_rate": 0.08, "nll": 0.4, "ece": 0.01}),
        Evaluation("last epoch", "validation", {"accuracy": 0.91}),
    ),
    compared=({"label": "ERM | plain", "seeds": "5", "error_rate": "12.00 ± 0.10", "nll": "0.6", "ece": "–"},),
    figures=(("Learning curves", "learning_curves.png"),),
    remote_code=True,
    amp={"amp_epsilon": 0.5, "amp_target_parameters": ["a|b", "c"]},
    arguments={"learning_rate": 0.1, "optim": "sgd", "note": "two\nlines | and a bar"},
    training={"epochs": "3"},
    command="python train.py --lr 0.1",
    versions={"torch": "2.13", "python": "3.11"},
    hardware="a CPU",
    caveats=("Mind this.",),
    usage_notes=("A note.",),
    progress="**Under way.**",
)


def cells(line):
    return len(re.findall(r"(?<!\\)\|", line))


@pytest.mark.parametrize("facts", [LEAST, FULL], ids=["least", "full"])
def test_the_hub_takes_the_card_and_its_tables_are_whole(facts):
    card = render_card(facts)
    assert check_card(card) == ([], [])
    lines = card.splitlines()
    for i, line in enumerate(lines):
        if re.fullmatch(r"\|(---\|)+", line):
            rows = [i - 1]
            while lines[rows[-1] + 1].startswith("|"):
                rows.append(rows[-1] + 1)
            assert len(rows) > 2, line
            assert {cells(lines[row]) for row in rows} == {cells(line)}
    assert not re.search(r"\n{4,}|\{[{%]", card)
    assert "@inproceedings{zheng2021regularizing," in card
    assert "foret2021sharpness" in card
    assert "wu2020adversarial" in card


def test_results_come_back_as_they_were_and_last_and_best_apart():
    read = ModelCard(render_card(FULL)).data
    expected = eval_results(FULL)
    assert len(expected) == 9

    def key(one):
        return one.dataset_split, one.metric_name

    assert sorted(read.eval_results, key=key) == sorted(expected, key=key)
    values = {(one.dataset_split, one.metric_name): one.metric_value for one in read.eval_results}
    assert values["test", "error rate, last epoch"] == 0.1
    assert values["test", "error rate, best epoch"] == 0.08
    assert values["validation", "accuracy, last epoch"] == 0.91
    assert {one.dataset_config for one in read.eval_results} == {"plain_text"}
    assert (read.license, read.base_model, read.datasets, read.language) == (
        "mit",
        "user/base",
        ["uoft-cs/cifar10"],
        "en",
    )
    assert read.tags == ["adversarial-model-perturbation", "hf_amp", "vision"]


def test_numbers_of_numpy_and_torch_become_plain_and_others_are_left_out():
    metrics = {
        "accuracy": np.float32(0.5),
        "nll": np.float64(1.5),
        "count": np.int64(3),
        "tensor": torch.tensor(2.0),
        "nan": float("nan"),
        "numpy_nan": np.float32("nan"),
        "inf": float("inf"),
        "flag": True,
        "text": "good",
        "none": None,
    }
    facts = replace(FULL, evaluations=(Evaluation("last", "test", metrics),))
    assert facts.evaluations[0].metrics == {"accuracy": 0.5, "nll": 1.5, "count": 3, "tensor": 2.0}
    card = render_card(facts)
    assert "!!python" not in card
    assert "nan" not in card.replace("finance", "")
    assert [one.metric_value for one in ModelCard(card).data.eval_results] == [0.5, 1.5, 3, 2.0]


def test_without_a_name_of_the_data_there_are_results_but_no_model_index():
    card = render_card(replace(FULL, dataset_name=None))
    assert "model-index" not in card
    table = card.partition("## Results\n\n")[2].splitlines()[:5]
    names = "accuracy | error rate | negative log-likelihood (NLL) | expected calibration error (ECE)"
    assert table == [
        f"| weights | split | {names} |",
        "|---|---|---|---|---|---|",
        "| last epoch | test | 90.00 % | 10.00 % | 0.5000 | 2.00 % |",
        "| best epoch | test | 92.00 % | 8.00 % | 0.4000 | 1.00 % |",
        "| last epoch | validation | 91.00 % | – | – | – |",
    ]


def test_an_evaluation_without_a_number_is_not_mentioned():
    nothing = Evaluation("best epoch", "test", {"nll": float("nan")})
    assert "\nNot measured yet.\n" in render_card(replace(FULL, evaluations=(nothing,)))
    card = render_card(replace(FULL, evaluations=(*FULL.evaluations[:1], nothing)))
    assert "| best epoch |" not in card


def test_nothing_measured_is_said():
    assert "\nNot measured yet.\n" in render_card(LEAST)
    assert "Not measured yet" not in render_card(FULL)


def test_only_perturbed_weights_are_called_so():
    assert own_tags(replace(FULL, perturbed=False)) == ["hf_amp", "vision"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_card_is_known_as_untouched_until_somebody_changes_it(newline):
    card = render_card(FULL).replace("\n", newline)
    if newline == "\n":
        assert is_untouched(card)
    assert is_untouched(card.replace("\r\n", "\n"))
    assert not is_untouched(card.replace("A model.", "My model."))
    assert not is_untouched(card.replace("license: mit", "license: other"))
    assert not is_untouched(card + "more")
    assert not is_untouched("# Somebody else's\n")
    assert seal(render_card(FULL), "user/m") == render_card(FULL)


def test_an_untouched_card_moves_to_another_place():
    usage = 'load("user/m")  # "user/more" and user/m'
    card = render_card(replace(FULL, usage=usage))
    moved = moved_to(card, "lab/m2")
    assert 'load("lab/m2")  # "user/more" and user/m' in moved
    assert is_untouched(moved)
    assert "\n# m2\n" in moved
    assert ModelCard(moved).data.model_name == "m2"
    assert ModelCard(moved_to(moved, "m3")).data.model_name == "m3"
    assert moved_to(moved, "lab/m2") == moved
    changed = card + "mine"
    assert moved_to(changed, "lab/m2") == changed


@pytest.mark.parametrize(
    "metadata", ["", "---\ntags: other\nlicense: mit\n---\n", "---\ntags:\n- other\nlicense: mit\n---\n"]
)
def test_a_section_joins_somebody_elses_card(metadata):
    text = "# Their title\n\nTheir words, with `code` and | bars |.\n"
    card = with_section(metadata + text, FULL)
    assert text.strip() in card
    assert card.count("<!-- hf_amp: begin -->") == 1
    data = ModelCard(card).data
    others = ["other"] if metadata else []
    assert data.tags == [*others, "adversarial-model-perturbation", "hf_amp", "vision"]
    assert data.license == ("mit" if metadata else None)
    assert "`amp_epsilon` | `0.5`" in card
    assert "zheng2021regularizing" in card
    assert check_card(card) == ([], [])
    assert with_section(card, FULL) == card
    newer = with_section(card.rstrip() + "\n\nTheir last word.\n", replace(FULL, amp={"amp_epsilon": 0.25}))
    assert "`amp_epsilon` | `0.25`" in newer
    assert "`amp_epsilon` | `0.5`" not in newer
    assert newer.endswith("Their last word.\n")


def test_facts_survive_a_file():
    content = json.loads(json.dumps(FULL.to_json()))
    assert render_card(CardFacts.from_json({**content, "of a newer version": 1})) == render_card(FULL)
    endless = {"max_grad_norm": float("inf"), "learning_rate": float("nan"), "list": [-float("inf")]}
    content = json.loads(json.dumps(replace(FULL, arguments=endless).to_json(), allow_nan=False))
    assert content["arguments"] == {"max_grad_norm": "inf", "learning_rate": "nan", "list": ["-inf"]}

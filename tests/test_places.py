"""No text of a card gives a path of the machine on which it was written."""

import re
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_card_facts import card_of, make, network
from test_model_card import FULL

from hf_amp.hub.card import CardFacts, render_card
from hf_amp.hub.section import with_section
from hf_amp.hub.text.places import without_places

HOME, HERE, TEMPORARY = Path.home(), Path.cwd(), tempfile.gettempdir()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me/data", "data"),
        ("/home/me/my data/x y.csv", "x y.csv"),
        ("--data=/srv/me/train.csv", "--data=train.csv"),
        ("/a/b:/c/d", "d"),
        ("-I/tmp/include/x.h", "-Ix.h"),
        ("host:/srv/me/x", "host:x"),
        ('{"train": "/home/Jane Doe/a b.csv", "n": 1}', '{"train": "a b.csv", "n": 1}'),
        ("see /opt/data/cifar, then (/opt/more)", "see cifar, then (more)"),
        ("~/data/x", "x"),
        ("~me/data/x", "x"),
        ("../../me/data", "data"),
        ("file:///home/me/x.csv", "x.csv"),
        (r"C:\Users\me\data.csv", "data.csv"),
        (r"\\server\share\data.csv", "data.csv"),
        ("/home/me", "~"),
        ("/home/me/", "~"),
        ("/Users/me", "~"),
        (str(HOME), "~"),
        (f"{HERE}/out", "out"),
        (f"x{TEMPORARY}/out", "xout"),
    ],
)
def test_a_path_becomes_its_last_name(text, told):
    assert without_places(text) == told
    assert without_places(told) == told


@pytest.mark.parametrize(
    "text",
    [
        "user/model",
        "data/train.csv",
        "python examples/image_classification.py --config examples/recipes/x.yaml",
        "https://huggingface.co/user/model",
        "[a](https://host/x/y)",
        "s3://bucket/data",
        "1/2 and/or 3 / 4",
        "Δ = ε g/‖g‖ over all parameters",
        "16 = 4 in a micro-batch × 2 process(es) × 2 micro-batch(es)",
        "~5 % of it",
        "",
        "/",
    ],
)
def test_what_is_no_path_of_the_machine_stays(text):
    assert without_places(text) == text


def test_values_of_other_kinds_keep_their_kind():
    value = {"a": ["/x/y", 1, None], "b": ("/x/z", 0.5), "/x/c": True}
    assert without_places(value) == {"a": ["y", 1, None], "b": ("z", 0.5), "c": True}


SECRET = "/srv/secret_project/of me/thing"


def injected(value):
    """The same value with the path of a machine in each of its texts."""
    if isinstance(value, str):
        return f'{value} "{SECRET}"'
    if isinstance(value, dict):
        return {name: injected(part) for name, part in value.items()}
    return tuple(injected(part) for part in value) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize(
    "name", [f.name for f in fields(CardFacts) if f.name not in ("usage", "evaluations", "perturbed", "remote_code")]
)
def test_no_fact_brings_a_path_into_a_card(name):
    changed = injected(getattr(FULL, name))
    assert "secret_project" in str(changed)
    facts = replace(FULL, **{name: changed})
    for text in (render_card(facts), with_section("# Theirs\n", facts), str(facts.to_json())):
        assert "secret_project" not in text


def places_in(card):
    return [place for place in (str(HOME), str(HERE), TEMPORARY, "secret_project", "/srv") if place in card]


def test_the_card_of_a_training_gives_no_path(tmp_path, monkeypatch):
    base, folder = tmp_path / "base model", tmp_path / "secret_project" / "out"
    network().save_pretrained(base)
    words = [str(HERE / "train.py"), "--data", SECRET, f"--files={{'train': '{SECRET}'}}", f"-C{tmp_path}", "../a/b"]
    monkeypatch.setattr(sys, "argv", words)
    trainer = make(
        folder,
        model=type(network()).from_pretrained(base),
        run_name=f"{tmp_path}/secret_project/run",
        lr_scheduler_kwargs={"file": SECRET},
        amp_target_parameters=[f"(/srv|{HOME}/x|weight)"],
    )
    trainer.create_model_card(
        model_name=f"{tmp_path}/model",
        finetuned_from=str(base),
        dataset=SECRET,
        dataset_tags=str(tmp_path),
        dataset_args=f"data_dir={SECRET}",
        tags=[SECRET],
        tasks="image-classification",
    )
    card = card_of(trainer)
    assert places_in(card) == []
    assert not re.search(r"(?<![\w:/<])/\w", card), "an absolute path"
    assert "python train.py --data thing" in card
    assert ModelCard(card).data.base_model is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
def test_a_local_base_of_an_adapter_is_not_told(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = network()
    target = next(name for name, part in model.named_modules() if type(part).__name__ == "Conv2d")
    adapter = LoraConfig(target_modules=[target], r=1)
    trainer = make(tmp_path / "out", model=get_peft_model(model, adapter))
    trainer.model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    trainer.create_model_card()
    assert ModelCard(card_of(trainer)).data.base_model is None
    assert places_in(card_of(trainer)) == []

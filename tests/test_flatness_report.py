"""`examples/explain_flatness.py`: figures and numbers of saved models, kept, continued and not overwritten."""

import json
import shutil

import pytest
import torch
from commands import load_example
from small_networks import small_network
from tiny_images import image_split, own_cache, write_parquet
from transformers import AutoModelForImageClassification

from hf_amp.hub.card import CardFacts, is_untouched
from hf_amp.vision import make_image_processor
from hf_amp.vision.report.card import write_image_card
from hf_amp.vision.report.flatness import report as flatness_report
from hf_amp.vision.report.flatness.figures import save_contours, save_perturbation, save_reliability

FIGURES = {
    "flatness_perturbation.png",
    "flatness_surface_contour.png",
    "flatness_reliability.png",
}
SMALL = (
    *("--use_cpu", "--dataset", "digits", "--max_train_samples", "60", "--max_samples", "30"),
    *("--num_directions", "2", "--num_sizes", "3", "--grid_size", "3", "--ascents", "1", "--max_epsilon", "0.2"),
)


def save(folder, seed=0, dataset="digits", **config):
    """Save a small network as training would."""
    own = {"num_channels": 1, "num_labels": 10} if dataset == "digits" else {}
    small_network("preactresnet-basic", seed, **own, **config).save_pretrained(folder)
    colour = {} if dataset == "digits" else {"mean": [0.5] * 3, "std": [0.25] * 3}
    make_image_processor(dataset, 8, **colour).save_pretrained(folder)
    return folder


def explain(*words, flags=SMALL):
    return load_example("explain_flatness").main([*map(str, words), *flags])


def refusal(*words, flags=SMALL):
    with pytest.raises(SystemExit) as caught:
        explain(*words, flags=flags)
    return str(caught.value)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save(folder / "first"), save(folder / "second", seed=1)


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """A finished report on two models."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, explain(*models, "--labels", "ERM", "AMP", "--output_dir", folder)


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch):
    """Write the numbers in place of the figures, which take a second; those of `whole` are real."""
    for name in FIGURES:
        monkeypatch.setitem(flatness_report.FIGURES, name, lambda path, models: path.write_text(json.dumps(models)))


@pytest.fixture
def model(models, tmp_path):
    """A folder of its own for one test."""
    return shutil.copytree(models[0], tmp_path / "model")


def without_command(content):
    return {name: value for name, value in content.items() if name != "command"}


def test_figures_and_numbers_are_written_and_nothing_else(whole):
    folder, content = whole
    assert {path.name for path in folder.iterdir()} == FIGURES | {"flatness.json"}
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in FIGURES)
    assert json.loads((folder / "flatness.json").read_text()) == json.loads(json.dumps(content))
    assert [model["label"] for model in content["models"]] == ["ERM", "AMP"]
    assert content["splits"] == {"train": 30, "test": 30}
    assert {"torch", "transformers"} <= set(content["versions"])


def test_every_part_has_its_shape_and_all_agree_at_the_weights_themselves(whole):
    for model in whole[1]["models"]:
        assert model["random"]["sizes"] == [0.0, 0.5, 1.0]
        assert model["worst"]["epsilons"] == [0.0, 0.1, 0.2]
        assert model["surface"]["coordinates"] == [-1.0, 0.0, 1.0]
        for split in ("train", "test"):
            scores = model["reliability"][split]
            assert sum(one["count"] for one in scores["bins"]) == 30
            for metric, expected in (("loss", scores["nll"]), ("error_rate", scores["error_rate"])):
                rays, surface = model["random"][split][metric], model["surface"][split][metric]
                assert [len(ray) for ray in rays] == [3, 3]
                assert metric == "error_rate" or rays[0][1:] != rays[1][1:]
                assert [len(row) for row in surface] == [3, 3, 3]
                for value in (rays[0][0], rays[1][0], model["worst"][split][metric][0], surface[1][1]):
                    assert value == pytest.approx(expected, rel=1e-5)
                # The surface's axes are the first two of the random directions.
                assert surface[1][2] == pytest.approx(rays[0][2], rel=1e-5)
                assert surface[2][1] == pytest.approx(rays[1][2], rel=1e-5)
        worst = model["worst"]["train"]["loss"]
        assert worst == sorted(worst)
        assert worst[0] < worst[1]
    first, second = whole[1]["models"]
    assert first["surface"] != second["surface"]


def test_figures_go_to_the_models_folder_and_leave_the_model_alone(model):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    content = explain(model)
    assert content["models"][0]["label"] == f"{model.parent.name}/model"
    assert {path.name for path in model.iterdir()} == set(before) | FIGURES | {"flatness.json"}
    assert all((model / name).read_bytes() == data for name, data in before.items())
    assert AutoModelForImageClassification.from_pretrained(model).config.num_labels == 10


def test_norm_seed_and_label_noise_change_what_they_should(whole, models, tmp_path):
    both = whole[1]["models"][0]
    ball = explain(models[0], "--norm", "global", "--output_dir", tmp_path / "norm")["models"][0]
    assert ball["worst"]["train"]["loss"][1] < both["worst"]["train"]["loss"][1]  # a smaller ball of the same radius
    assert {name: ball[name] for name in ("random", "surface")} == {name: both[name] for name in ("random", "surface")}
    noise = explain(models[0], "--label_noise", "0.5", "--output_dir", tmp_path / "noise")["models"][0]
    assert noise["reliability"]["train"]["nll"] != both["reliability"]["train"]["nll"]
    assert noise["reliability"]["test"] == both["reliability"]["test"]
    seed = explain(models[0], "--seed", "1", "--output_dir", tmp_path / "seed")["models"][0]
    assert seed["surface"]["train"] != both["surface"]["train"]


class Stop:
    """Ends the command at the n-th measurement of a kind, as Ctrl-C does, and counts them."""

    def __init__(self, monkeypatch):
        self.calls, self.at = 0, None
        for name in ("losses_at", "worst_losses", "reliability"):
            monkeypatch.setattr(flatness_report, name, self.wrap(getattr(flatness_report, name)))

    def wrap(self, original):
        def measured(*args, **kwargs):
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return measured

    def stop_at(self, call):
        self.calls, self.at = 0, call


PARTS = 1 + 2 + 2 + 3  # reliability, random directions, radii above 0, rows of the surface


@pytest.mark.parametrize("call", [1, 2, 3, 5, 7, PARTS + 2])
def test_a_stopped_command_keeps_finished_parts_and_comes_to_the_same_report(
    call, whole, models, tmp_path, monkeypatch
):
    stop = Stop(monkeypatch)
    stop.stop_at(call)
    words = (*models, "--labels", "ERM", "AMP", "--output_dir", tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        explain(*words)
    assert not list(tmp_path.glob("out/flatness_*.png"))
    assert not (tmp_path / "out" / "flatness.json").exists()
    stop.stop_at(None)
    content = explain(*words)
    assert stop.calls == 2 * PARTS - (call - 1)
    assert without_command(content) == without_command(whole[1])
    assert {path.name for path in (tmp_path / "out").iterdir()} == FIGURES | {"flatness.json"}


def test_a_finished_report_is_only_drawn_again_also_with_other_labels_and_batches(model, monkeypatch):
    explain(model)
    before = json.loads((model / "flatness.json").read_text())
    (model / "flatness_reliability.png").unlink()
    stop = Stop(monkeypatch)
    flags = ("--labels", "AMP", "--per_device_eval_batch_size", "7")
    content = explain(model, *flags)
    assert stop.calls == 0
    assert (model / "flatness_reliability.png").exists()
    assert content["models"] == [{**before["models"][0], "label": "AMP"}]


def test_an_error_while_drawing_keeps_the_numbers(model, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setitem(flatness_report.FIGURES, "flatness_reliability.png", lambda *args: 1 / 0)
        explain(model)
    stop = Stop(monkeypatch)
    explain(model)
    assert stop.calls == 0
    assert {path.name for path in model.glob("flatness_*")} == FIGURES


def test_figures_of_other_settings_are_not_overwritten_unless_asked(model):
    explain(model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    message = refusal(model, "--max_size", "0.5")
    assert f"`output_dir` {model} holds flatness figures of other settings (max_size: 1.0 there, 0.5 now)" in message
    assert "give --overwrite to replace them, or another --output_dir" in message
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    content = explain(model, "--max_size", "0.5", "--overwrite")
    assert content["models"][0]["random"]["sizes"] == [0.0, 0.25, 0.5]
    assert (model / "flatness_perturbation.png").read_bytes() != before["flatness_perturbation.png"]


def test_other_weights_or_images_are_other_settings(model):
    explain(model)
    save(model, seed=5)
    assert "(other weights or images)" in refusal(model)
    save(model)
    assert "(other weights or images)" in refusal(model, "--label_noise_seed", "3", "--split_seed", "2")
    explain(model)  # as at first


def test_a_stopped_overwrite_leaves_the_old_report_and_is_continued(model, monkeypatch):
    old = explain(model)
    stop = Stop(monkeypatch)
    stop.stop_at(4)
    flags = ("--max_size", "0.5", "--overwrite")
    with pytest.raises(KeyboardInterrupt):
        explain(model, *flags)
    assert json.loads((model / "flatness.json").read_text()) == old
    stop.stop_at(None)
    explain(model, *flags)
    assert stop.calls == PARTS - 3
    assert not (model / "flatness_parts.json").exists()


def test_parts_of_other_settings_are_not_mixed_in(model, monkeypatch):
    stop = Stop(monkeypatch)
    stop.stop_at(4)
    with pytest.raises(KeyboardInterrupt):
        explain(model)
    assert "(max_size: 1.0 there, 0.5 now)" in refusal(model, "--max_size", "0.5")
    stop.stop_at(None)
    explain(model, "--max_size", "0.5", "--overwrite")
    assert stop.calls == PARTS


def test_figures_of_unknown_origin_are_not_overwritten(model):
    (model / "flatness_reliability.png").write_bytes(b"mine")
    assert "holds flatness_reliability.png but no flatness.json" in refusal(model)
    assert (model / "flatness_reliability.png").read_bytes() == b"mine"
    explain(model, "--overwrite")
    assert (model / "flatness_reliability.png").read_bytes() != b"mine"


def test_a_damaged_record_is_named(model):
    (model / "flatness.json").write_text('{"settings": ')
    assert "flatness.json is not a JSON file" in refusal(model)


@pytest.fixture
def colour(tmp_path, monkeypatch):
    """Flags for a data set in colour with five classes, in files."""
    own_cache(monkeypatch, tmp_path / "cache")
    data = write_parquet(tmp_path / "data", train=image_split(20, 5), test=image_split(10, 5, seed=1))
    return ("--dataset", "pictures", "--dataset_path", data)


def test_colour_images_from_files_and_labels_by_name(colour, tmp_path):
    names = {i: f"class {i}" for i in range(5)}
    model = save(tmp_path / "model", dataset="pictures", id2label=names, label2id={v: k for k, v in names.items()})
    straight = explain(model, *SMALL, *colour, flags=())
    network = AutoModelForImageClassification.from_pretrained(model)
    order = [3, 1, 4, 0, 2]
    with torch.no_grad():
        for param in network.classifier.linear.parameters():
            param.copy_(param[order])
    network.config.id2label = {i: names[old] for i, old in enumerate(order)}
    network.config.label2id = {names[old]: i for i, old in enumerate(order)}
    network.save_pretrained(model)
    turned = explain(model, *SMALL, *colour, "--output_dir", tmp_path / "turned", flags=())
    for split in ("train", "test"):
        for metric in ("nll", "error_rate", "ece"):
            one, other = (content["models"][0]["reliability"][split][metric] for content in (straight, turned))
            assert one == pytest.approx(other, rel=1e-5)


def test_a_data_set_without_test_split_is_tested_on_its_validation_split(tmp_path, monkeypatch):
    own_cache(monkeypatch, tmp_path / "cache")
    data = write_parquet(tmp_path / "data", train=image_split(20, 5), validation=image_split(10, 5, seed=1))
    model = save(tmp_path / "model", dataset="pictures")
    content = explain(model, *SMALL, "--dataset", "pictures", "--dataset_path", data, flags=())
    assert content["splits"] == {"train": 20, "validation": 10}
    assert set(content["models"][0]["reliability"]) == {"train", "validation"}


def test_a_models_own_code_runs_only_when_asked(colour, tmp_path):
    model = save(tmp_path / "model", dataset="pictures")
    for path in (model / "config.json", model / "configuration_preactresnet.py"):
        path.write_text(path.read_text().replace('"preactresnet"', '"unknown-network"'))
    assert "trust_remote_code" in refusal(model, *SMALL, *colour, flags=())
    content = explain(model, *SMALL, *colour, "--trust_remote_code", flags=())
    assert content["models"][0]["reliability"]["test"]["nll"] > 0


def test_classes_that_do_not_fit_are_refused(colour, models):
    message = refusal(models[0], *SMALL, *colour, flags=())
    assert "has 10 classes, the data set 5; give the --dataset that it was trained on" in message


def test_folders_that_hold_no_model_are_refused(model, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"`model` {empty} holds no config.json; give the folder of a trained model" in refusal(empty)
    (model / "preprocessor_config.json").unlink()
    assert "has no image processor" in refusal(model)


def test_diverged_weights_are_refused(model):
    network = AutoModelForImageClassification.from_pretrained(model)
    with torch.no_grad():
        network.classifier.linear.weight.fill_(float("nan"))
    network.save_pretrained(model)
    assert "give weights of a training that did not diverge" in refusal(model)
    assert not list(model.glob("flatness*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--grid_size", "4"), "`grid_size` must be odd, so that the model itself is on the grid, got 4; use 5"),
        (("--grid_size", "1"), "`grid_size` must be >= 3, got 1"),
        (("--num_sizes", "1"), "`num_sizes` must be >= 2, got 1"),
        (("--num_directions", "0"), "`num_directions` must be >= 1, got 0"),
        (("--ascents", "0"), "`ascents` must be >= 1, got 0"),
        (("--max_samples", "0"), "`max_samples` must be >= 1, got 0"),
        (("--max_epsilon", "-1"), "`max_epsilon` must be a number > 0, got -1.0"),
        (("--max_size", "nan"), "`max_size` must be a number > 0, got nan"),
        (("--norm", "layer"), "`norm` must be tensor or global, got 'layer'; choose one"),
        (("--labels", "A", "B"), "`labels` must name each model once, got 2 for 1; give --labels ERM AMP"),
    ],
)
def test_bad_settings_are_refused_before_any_work(words, message, models):
    assert message in refusal(models[0], *SMALL, *words, flags=())


def test_one_model_or_two_with_names_of_their_own(models):
    assert "`models` must be one model or two to compare, got 3" in refusal(*models, models[0])
    assert "`labels` must differ, got ['A', 'A']" in refusal(*models, "--labels", "A", "A")


@pytest.mark.parametrize("draw", [save_perturbation, save_contours, save_reliability])
@pytest.mark.parametrize("count", [1, 2])
def test_figures_are_drawn_from_numbers_with_gaps(draw, count, whole, tmp_path):
    models = json.loads(json.dumps(whole[1]["models"]))[:count]
    for model in models:
        model["label"] = "an-organisation/a-network-with-a-very-long-name-" + model["label"]
        for split in ("train", "test"):
            model["surface"][split]["loss"][0][2] = None
            model["random"][split]["loss"][0][2] = None
            model["surface"][split]["loss"][1][1] = 0.0
    draw(tmp_path / "figure.png", models)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_of_the_model_shows_the_figures_unless_it_was_changed(model):
    facts = CardFacts(model_name="m", repo_id="m", summary="A model.", method="Somehow.", usage="load()")
    write_image_card(model, facts)
    explain(model)
    card = (model / "README.md").read_text()
    assert is_untouched(card)
    assert all(f"]({name})" in card for name in FIGURES)
    (model / "README.md").write_text(card + "My own words.")
    explain(model)
    assert (model / "README.md").read_text() == card + "My own words."

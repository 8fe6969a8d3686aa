"""Recipes, files and flags come to the same settings, each with its type; what cannot be meant is refused by name."""

from pathlib import Path

import pytest

from hf_amp.vision.train.command_line import default_output_dir, read_settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("amp_epsilom: 0.1", "holds an unknown name 'amp_epsilom'; did you mean `amp_epsilon`?"),
        ("- a list", "must hold `name: value` lines, got list"),
        ("a: [", "is not YAML"),
    ],
)
def test_refused_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_settings(["--config", str(path)])
    assert message in str(error.value)


def test_a_missing_recipe_names_where_they_are():
    with pytest.raises(ValueError, match=r"`--config` no.yaml cannot be read .*; give a YAML file"):
        read_settings(["--config", "no.yaml"])
    with pytest.raises(ValueError, match="`--config` must name a YAML file"):
        read_settings(["--config"])


def test_every_kind_of_value_of_a_file_has_its_fields_type(tmp_path):
    path = tmp_path / "settings.yaml"
    lines = ("seeds: [1, 2]", "bf16: false", "model_args: {a: [1, 2]}", "dataset_path: null", "learning_rate: 1e-3")
    path.write_text("\n".join((*lines, "num_train_epochs: 3", "amp_target_parameters: conv", 'eval_strategy: "no"')))
    settings, _ = read_settings([f"--config={path}", "--seeds", "7"])
    assert settings.given == {
        "seeds": [7],
        "bf16": False,
        "model_args": {"a": [1, 2]},
        "learning_rate": 0.001,
        "num_train_epochs": 3.0,
        "amp_target_parameters": ["conv"],
        "eval_strategy": "no",
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rate: fast", "`learning_rate` must be float, got 'fast'"),
        ("eval_strategy: no", "`eval_strategy` must be no switch; write words such as no in quotes, got False"),
        ("bf16: 3", "`bf16` must be true or false, got 3"),
        ("learning_rate: [1, 2]", r"`learning_rate` must be one value, got \[1, 2\]"),
        ("lr_schedule: linear", "`lr_schedule` must be one of step, trainer, got 'linear'"),
    ],
)
def test_values_of_the_wrong_type_in_a_file_are_refused_by_name(tmp_path, line, message):
    (tmp_path / "x.yaml").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_settings(["--config", str(tmp_path / "x.yaml")])


@pytest.mark.parametrize("word", ["--amp_epsilom", "--amp_epsilo"])  # a typing error, an abbreviation
def test_an_unknown_flag_is_named_with_a_guess(word):
    with pytest.raises(ValueError, match=f"'{word}' is not a flag; did you mean `amp_epsilon`?"):
        read_settings([word, "3"])


def test_a_value_of_the_wrong_type_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit):
        read_settings(["--amp_epsilon", "much"])
    assert "argument --amp_epsilon" in capsys.readouterr().err.splitlines()[0]


def test_default_output_folder():
    words = ["--dataset", "a/b", "--augmentation", "cutout", "--method", "amp", "--label_noise", "0.2", "--use_cpu"]
    arguments = read_settings(words)[0].arguments()
    assert default_output_dir(*arguments) == str(Path("outputs/a-b_preactresnet18_cutout_amp_noise0.2"))
    assert arguments[2].output_dir == str(Path("outputs/a-b_preactresnet18_cutout_amp_noise0.2"))


def test_a_named_schedule_is_used_or_refused():
    training = read_settings(["--lr_scheduler_type", "cosine", "--use_cpu"])[0].arguments()[2]
    assert training.lr_schedule == "trainer"
    with pytest.raises(ValueError, match="`lr_scheduler_type`='cosine' has no part in the step schedule; add"):
        read_settings(["--lr_scheduler_type", "cosine", "--lr_schedule", "step", "--use_cpu"])[0].arguments()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` has no part here"):
        read_settings(["--resume_from_checkpoint", "x", "--use_cpu"])[0].arguments()

import math
import pickle
from dataclasses import dataclass

import pytest
import torch
from tiny import amp_trainer
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from hf_amp import AMPArguments, AMPTrainingArguments
from hf_amp.training_args import AMPSettings

EVERY_FIELD = {
    "amp_epsilon": 0.25,
    "amp_inner_lr": 2.0,
    "amp_inner_iter": 3,
    "amp_norm": "global",
    "amp_scope": "micro_batch",
    "amp_norm_stats": "descent",
    "amp_start": 0.25,
    "amp_end": 0.75,
    "amp_every": 2,
    "amp_ascent_fraction": 0.5,
    "amp_target_parameters": ["weight$", "classifier"],
}


def test_defaults_are_those_of_the_authors_code_but_for_the_radius():
    settings = AMPSettings.from_args(AMPTrainingArguments(output_dir="out"))
    assert settings == AMPSettings(None, 1.0, 1, "tensor", "batch", "every_pass", 0.0, 1.0, 1, 1.0, None)


def test_plain_training_arguments_give_the_defaults():
    plain = AMPSettings.from_args(TrainingArguments(output_dir="out"))
    assert plain == AMPSettings.from_args(AMPTrainingArguments(output_dir="out"))


def test_every_field_works_from_the_command_line_and_has_help():
    words = ["--output_dir", "out"]
    for name, value in EVERY_FIELD.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    parser = HfArgumentParser(AMPTrainingArguments)
    (args,) = parser.parse_args_into_dataclasses(words)
    assert {name: getattr(args, name) for name in EVERY_FIELD} == EVERY_FIELD
    helps = {action.dest: action.help for action in parser._actions}
    assert all(helps[name].startswith("AMP: ") for name in EVERY_FIELD)


def test_fields_survive_dict_json_and_pickle():
    args = AMPTrainingArguments(output_dir="out", **EVERY_FIELD)
    for restored in (args.to_dict(), pickle.loads(pickle.dumps(args)).to_dict()):
        assert {name: restored[name] for name in EVERY_FIELD} == EVERY_FIELD
    (parsed,) = HfArgumentParser(AMPTrainingArguments).parse_dict(args.to_dict(), allow_extra_keys=True)
    assert AMPSettings.from_args(parsed) == AMPSettings.from_args(args)


def test_fields_are_in_the_saved_training_args_and_what_reporters_get(tmp_path):
    trainer = amp_trainer(tmp_path, **EVERY_FIELD | {"amp_target_parameters": "weight"})
    trainer.save_model(str(tmp_path / "model"))
    saved = torch.load(tmp_path / "model" / "training_args.bin", weights_only=False)
    assert AMPSettings.from_args(saved) == AMPSettings.from_args(trainer.args)
    assert trainer.args.to_sanitized_dict()["amp_epsilon"] == 0.25  # TensorBoard's hyperparameters


def test_mixin_makes_other_training_arguments_amp_ones():
    @dataclass
    class Config(AMPArguments, Seq2SeqTrainingArguments):
        pass

    config = Config(output_dir="out", amp_epsilon=0.125, predict_with_generate=True)
    assert (config.amp_epsilon, config.predict_with_generate) == (0.125, True)
    with pytest.raises(ValueError, match="amp_epsilon"):
        Config(output_dir="out", amp_epsilon=-1.0)


@pytest.mark.parametrize(
    ("field", "value", "error", "text"),
    [
        ("amp_epsilon", -0.5, ValueError, "`amp_epsilon` must be finite and >= 0, got -0.5; use 0 to switch"),
        ("amp_epsilon", math.inf, ValueError, "`amp_epsilon` must be finite"),
        ("amp_epsilon", math.nan, ValueError, "`amp_epsilon` must be finite"),
        ("amp_epsilon", "0.5", TypeError, r"`amp_epsilon` must be a number >= 0, got '0.5' \(str\)"),
        ("amp_epsilon", True, TypeError, "`amp_epsilon` must be a number"),
        ("amp_inner_lr", 0.0, ValueError, "`amp_inner_lr` must be finite and > 0, got 0.0; use amp_epsilon=0"),
        ("amp_inner_lr", math.nan, ValueError, "`amp_inner_lr` must be finite"),
        ("amp_inner_iter", -1, ValueError, "`amp_inner_iter` must be >= 0, got -1; use 0"),
        ("amp_inner_iter", 1.5, TypeError, r"`amp_inner_iter` must be an integer >= 0, got 1.5 \(float\)"),
        ("amp_norm", "l2", ValueError, "`amp_norm` must be one of 'tensor', 'global', got 'l2'"),
        ("amp_scope", "window", ValueError, "`amp_scope` must be one of 'batch', 'micro_batch', got 'window'"),
        ("amp_norm_stats", "none", ValueError, "`amp_norm_stats` must be one of 'every_pass', 'clean', 'descent'"),
        ("amp_start", -0.1, ValueError, r"`amp_start` must be finite and in \[0, 1\], got -0.1"),
        ("amp_end", 1.1, ValueError, r"`amp_end` must be finite and in \[0, 1\], got 1.1"),
        ("amp_every", 0, ValueError, "`amp_every` must be >= 1, got 0; use 1"),
        ("amp_ascent_fraction", 0.0, ValueError, r"`amp_ascent_fraction` must be finite and in \(0, 1\], got 0.0"),
        ("amp_ascent_fraction", 1.5, ValueError, r"`amp_ascent_fraction` must be finite and in \(0, 1\], got 1.5"),
        ("amp_target_parameters", "(", ValueError, r"`amp_target_parameters` must hold regular expressions, got '\('"),
        ("amp_target_parameters", [], ValueError, "`amp_target_parameters` must not be empty"),
        ("amp_target_parameters", [1], TypeError, "`amp_target_parameters` must be a string or a list of strings"),
        ("amp_target_parameters", 7, TypeError, "`amp_target_parameters` must be a string or a list of strings"),
    ],
)
def test_bad_values_are_refused_with_value_rule_and_remedy(field, value, error, text):
    with pytest.raises(error, match=text):
        AMPTrainingArguments(output_dir="out", **{field: value})


def test_start_after_end_is_refused():
    with pytest.raises(ValueError, match=r"`amp_start` must be <= `amp_end`, got 0\.75 > 0\.25; swap them"):
        AMPTrainingArguments(output_dir="out", amp_start=0.75, amp_end=0.25)


def test_a_value_that_became_bad_after_construction_is_refused_before_training(tmp_path):
    trainer = amp_trainer(tmp_path)
    trainer.args.amp_every = 0
    with pytest.raises(ValueError, match="`amp_every` must be >= 1"):
        trainer.train()
    assert trainer.model.passes == 0


@pytest.mark.parametrize("off", [{"amp_epsilon": 0.0}, {"amp_inner_iter": 0}, {"amp_start": 0.3, "amp_end": 0.3}])
def test_switched_off_is_never_active(off):
    settings = AMPSettings.from_args(AMPTrainingArguments(output_dir="out", **off))
    assert settings.switched_off
    assert not any(settings.active_at(step, 10) for step in range(10))


@pytest.mark.parametrize(
    ("schedule", "active_steps"),
    [
        ({}, range(1, 11)),
        ({"amp_start": 0.5}, range(6, 11)),
        ({"amp_end": 0.5}, range(1, 6)),
        ({"amp_start": 0.3, "amp_end": 0.6}, range(4, 7)),
        ({"amp_every": 3}, (3, 6, 9)),
        ({"amp_every": 2, "amp_start": 0.5}, (6, 8, 10)),
        ({"amp_every": 20}, ()),
    ],
)
def test_schedule_counts_optimizer_steps_from_one(schedule, active_steps):
    settings = AMPSettings.from_args(AMPTrainingArguments(output_dir="out", **schedule))
    assert [step for step in range(1, 11) if settings.active_at(step - 1, 10)] == list(active_steps)


@pytest.mark.parametrize("percent", range(100))
def test_schedule_starts_at_the_very_step_that_the_fraction_names(percent):
    settings = AMPSettings.from_args(AMPTrainingArguments(output_dir="out", amp_start=float(f"0.{percent:02d}")))
    first = next(step for step in range(100) if settings.active_at(step, 100))
    assert first == percent

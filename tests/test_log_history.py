"""What is read from a Trainer's log."""

from hf_amp.hub.log_history import curves, evaluations


def test_curves_join_training_and_evaluation_of_a_step():
    history = [
        {"loss": 1.0, "sharpness": 0.1, "epoch": 1.0, "step": 5},
        {"eval_nll": 2.0, "eval_error_rate": 0.5, "eval_runtime": 3.0, "epoch": 1.0, "step": 5},
        {"train_runtime": 9.0, "epoch": 1.0, "step": 5},
    ]
    expected = {"epoch": 1.0, "step": 5, "loss": 1.0, "sharpness": 0.1, "eval_nll": 2.0, "eval_error_rate": 0.5}
    assert curves(history) == [expected]


def test_curves_leave_out_speed_and_what_is_no_number():
    history = [{"eval_loss": 1.0, "eval_samples_per_second": 3.0, "eval_text": "good", "step": 2}]
    assert curves(history) == [{"epoch": None, "step": 2, "eval_loss": 1.0}]


def test_evaluations_of_every_prefix():
    history = [
        {"loss": 1.0, "step": 1},
        {"eval_loss": 2.0, "eval_runtime": 0.1, "eval_steps_per_second": 9.0, "step": 1},
        {"test_accuracy": 0.5, "test_runtime": 0.1, "step": 2},
        {"train_runtime": 5.0, "train_loss": 1.0, "step": 2},
    ]
    assert list(evaluations(history)) == [("eval", 1, {"loss": 2.0}), ("test", 2, {"accuracy": 0.5})]

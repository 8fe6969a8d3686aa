"""What trl and sentence-transformers count in `compute_loss`: a held pass leaves no trace, another one does."""

import copy
import functools

import pytest
from kinds import KINDS, embeddings
from sentence_transformers.sentence_transformer.losses import GlobalOrthogonalRegularizationLoss
from test_shares import CUT, loss, rows_and_batch
from tiny_text import pairs

from hf_amp.third_party import figures_held


def several_parts(folder, method, **arguments):
    """A loss that returns its parts, which are logged."""
    return embeddings(folder, method, GlobalOrthogonalRegularizationLoss, pairs(), **arguments)


COLLECTING = {name: CUT[name] for name in ("SFT", "DPO", "Reward", "KTO", "CPO", "ORPO", "TPO")} | {
    "GlobalOrthogonalRegularization": several_parts
}


def collected(trainer):
    names = ("_metrics", "_stored_metrics", "_total_train_tokens", "accum_loss_components")
    found = {name: copy.deepcopy(vars(trainer)[name]) for name in names if name in vars(trainer)}
    for store in (found.get("_metrics", {}), found.get("_stored_metrics", {})):
        for mode in [mode for mode, figures in store.items() if not figures.keys() - {"num_tokens"}]:
            del store[mode]
        for figures in store.values():
            figures.pop("num_tokens", None)  # written anew in each pass, from the count
    return found


@pytest.mark.parametrize("name", list(COLLECTING))
def test_a_held_pass_leaves_no_trace(name, tmp_path):
    trainer = COLLECTING[name](tmp_path, "plain")
    _, batch, _ = rows_and_batch(trainer)
    for _ in range(2):  # with nothing collected before, and with something
        before = collected(trainer)
        with figures_held(trainer):
            loss(trainer, batch)
            assert collected(trainer) != before
        assert collected(trainer) == before
        loss(trainer, batch)
        assert collected(trainer) != before


@pytest.mark.parametrize("name", list(COLLECTING))
def test_what_is_logged_with_a_tiny_epsilon_is_what_the_plain_class_logs(name, tmp_path):
    make = functools.partial(COLLECTING[name], max_steps=2)
    plain, amp = make(tmp_path / "plain", "plain"), make(tmp_path / "amp", "amp", amp_epsilon=1e-12)
    for trainer in (plain, amp):
        trainer.train()
    for expected, found in zip(plain.state.log_history[:2], amp.state.log_history[:2], strict=True):
        assert expected.keys() <= found.keys()
        assert len(expected) > 4  # more than any Trainer logs
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_other_trainers_have_nothing_to_hold(tmp_path):
    trainer = KINDS["Seq2Seq"](tmp_path, "plain")
    trainer._metrics = {"seen": 1.0}  # somebody's own
    with figures_held(trainer):
        trainer._metrics["seen"] += 1.0
    assert trainer._metrics == {"seen": 2.0}


# Names of other packages that `hf_amp.third_party` relies on and no documentation promises: what breaks without each.
@pytest.mark.parametrize(
    ("name", "attribute", "without_it"),
    [
        ("SFT", "_total_train_tokens", "num_tokens would count once a pass"),
        ("SFT", "_metrics", "accuracies and rewards would be means over θ and θ + Δ"),
        ("CPO", "_stored_metrics", "those of CPO and ORPO, too"),
        ("GlobalOrthogonalRegularization", "accum_loss_components", "parts of a loss would be means over both passes"),
        ("DPO", "_tag_names", "a share would be chosen answers without the rejected ones"),
        ("TPO", "tpo_alpha", "a share would be cut into two branches of three"),
    ],
)
def test_a_name_that_is_relied_on_is_there(name, attribute, without_it, tmp_path):
    assert hasattr(COLLECTING[name](tmp_path, "plain"), attribute), without_it

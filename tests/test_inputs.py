"""Every pass of a step sees the same inputs, whatever a pass does to its own."""

from collections import deque, namedtuple
from dataclasses import dataclass

import pytest
import torch
from tiny import Points, TinyModel, amp_trainer, largest_difference, parameters_of, tiny_model
from transformers import BatchEncoding

from hf_amp.inputs import Watch, copied, held, tensors_in

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Sample:
    x: torch.Tensor
    names: list


def test_copies_have_containers_of_their_own_and_the_same_tensors():
    tensor = torch.zeros(2)
    inputs = {"a": {"b": [tensor, (tensor,)], "c": Pair(tensor, 1)}, "d": Sample(tensor, ["x"]), "e": "text"}
    own = copied(inputs, clone=False)
    assert all(one is tensor for _, one in tensors_in(own))
    assert [name for name, _ in tensors_in(own)] == ["a.b[0]", "a.b[1][0]", "a.c[0]", "d.x"]
    own["a"]["b"].pop()
    own["d"].names.clear()
    del own["a"]["c"]
    assert len(inputs["a"]["b"]) == 2
    assert inputs["d"].names == ["x"]
    assert inputs["a"]["c"] == Pair(tensor, 1)


def test_clones_have_tensors_of_their_own():
    inputs = {"x": torch.ones(2), "inner": [torch.ones(2)]}
    own = copied(inputs, clone=True)
    own["x"].zero_()
    own["inner"][0].zero_()
    assert inputs["x"].sum() == inputs["inner"][0].sum() == 2


def test_encodings_keep_their_type():
    own = copied(BatchEncoding({"input_ids": torch.zeros(2, 3)}), clone=False)
    assert isinstance(own, BatchEncoding)


def test_iterators_are_read_once_and_given_to_each_pass():
    inputs = held({"x": torch.zeros(1), "parts": (i for i in range(3))})
    for _ in range(2):
        assert list(copied(inputs, clone=False)["parts"]) == [0, 1, 2]


def test_tensors_changed_in_place_are_found_by_name():
    inputs = {"x": torch.ones(2), "inner": {"y": torch.ones(2)}, "z": torch.ones(2)}
    watch = Watch(inputs)
    inputs["inner"]["y"].div_(2)
    inputs["z"] = inputs["z"] / 2
    assert watch.changed() == ["inner.y"]
    with torch.inference_mode():
        assert Watch({"x": torch.ones(1)}).changed() == []


def test_inputs_are_known_by_their_values_until_one_is_changed():
    x, y = torch.zeros(2), torch.ones(2)
    watch = Watch({"x": x, "inner": [y, "text"]})
    assert watch.sees({"x": x, "inner": [y, "text"]})
    assert watch.sees(BatchEncoding({"x": x, "inner": (y, "text")}))
    for other in ({"x": x.clone(), "inner": [y, "text"]}, {"x": x, "inner": [y, "words"]}, {"x": x, "inner": [y]}):
        assert not watch.sees(other)
    assert not watch.sees({"x": x, "inner": [y, "text"], "more": 1})
    y.add_(1)
    assert not watch.sees({"x": x, "inner": [y, "text"]})


# --- in a training ---


class Dividing(TinyModel):
    """Normalises its input in place."""

    changes = True

    def forward(self, x, labels=None):
        x = x.div_(10) if self.changes else x / 10
        return super().forward(x, labels)


@pytest.mark.parametrize("settings", [{}, {"amp_inner_iter": 2}, {"gradient_accumulation_steps": 2}])
def test_inputs_changed_in_place_give_the_weights_of_inputs_that_are_not(tmp_path, caplog, settings):
    models = []
    for changes in (True, False):
        model = tiny_model(Dividing)
        model.changes = changes
        amp_trainer(tmp_path, model, amp_epsilon=0.1, **settings).train()
        models.append(parameters_of(model))
        assert ("changes its inputs in place (x)" in caplog.text) == changes
        assert caplog.text.count("changes its inputs") <= 1
        caplog.clear()
    assert largest_difference(*models) == 0.0


def test_a_change_that_comes_later_is_said_with_what_it_did(tmp_path, caplog):
    class Later(TinyModel):
        def forward(self, x, labels=None):
            return super().forward(x.div_(10) if self.passes >= 4 else x, labels)

    amp_trainer(tmp_path, tiny_model(Later), amp_epsilon=0.1).train()
    assert "The later passes of this one step have seen the changed tensors." in caplog.text


def test_nested_inputs_may_be_popped_from(tmp_path):
    class Nested(TinyModel):
        def forward(self, batch):
            labels = batch.pop("labels")
            return super().forward(batch.pop("x"), labels)

    def collate(rows):
        return {"batch": {name: torch.stack([row[name] for row in rows]) for name in rows[0]}}

    nested, plain = tiny_model(Nested), tiny_model()
    amp_trainer(tmp_path, nested, data_collator=collate, remove_unused_columns=False, amp_epsilon=0.1).train()
    amp_trainer(tmp_path, plain, amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(nested), parameters_of(plain)) == 0.0


def test_a_generator_among_the_inputs_feeds_every_pass(tmp_path):
    class Streamed(TinyModel):
        def forward(self, parts, labels=None):
            return super().forward(torch.stack(list(parts)), labels)

    def collate(rows):
        return {"parts": (row["x"] for row in rows), "labels": torch.stack([row["labels"] for row in rows])}

    streamed, plain = tiny_model(Streamed), tiny_model()
    options = {"data_collator": collate, "remove_unused_columns": False, "amp_epsilon": 0.1}
    amp_trainer(tmp_path, streamed, data=Points(), **options).train()
    amp_trainer(tmp_path, plain, amp_epsilon=0.1).train()
    assert largest_difference(parameters_of(streamed), parameters_of(plain)) == 0.0


class Bag:
    """An object of a batch, with containers in its attributes."""

    def __init__(self, x):
        self.x, self.more, self.queue, self.array = x, {"parts": [(x,)]}, deque([x]), x.numpy().copy()


class SlottedBag:
    __slots__ = ("__private", "array", "more", "never_set", "queue", "x")

    __init__ = Bag.__init__


class HalfSlottedBag(SlottedBag):
    """With a `__dict__` beside the slots of its base."""


def assigned(bag):
    bag.x = bag.x / 10
    return bag.x


def changed_in_place(bag):
    return bag.x.div_(10)


def changed_in_a_tuple(bag):
    return bag.more["parts"][0][0].div_(10)


def popped(bag):
    return bag.more.pop("parts")[0][0] / 10


def taken_from_a_queue(bag):
    return bag.queue.popleft() / 10


def changed_in_an_array(bag):
    bag.array /= 10
    return torch.as_tensor(bag.array)


class Bagged(TinyModel):
    take = None

    def forward(self, bag, labels=None):
        return super().forward(type(self).take(bag), labels)


@pytest.mark.parametrize(
    "take", [assigned, changed_in_place, changed_in_a_tuple, popped, taken_from_a_queue, changed_in_an_array]
)
@pytest.mark.parametrize("settings", [{}, {"amp_inner_iter": 2}, {"gradient_accumulation_steps": 2}])
@pytest.mark.parametrize("kind", [Bag, SlottedBag, HalfSlottedBag])
def test_objects_among_the_inputs_hold_the_same_in_every_pass(tmp_path, caplog, monkeypatch, take, settings, kind):
    def collate(rows):
        labels = torch.stack([row["labels"] for row in rows])
        return {"bag": kind(torch.stack([row["x"] for row in rows])), "labels": labels}

    monkeypatch.setattr(Bagged, "take", take)
    bagged, plain = tiny_model(Bagged), tiny_model(Dividing)
    plain.changes = False
    amp_trainer(
        tmp_path, bagged, data_collator=collate, remove_unused_columns=False, amp_epsilon=0.1, **settings
    ).train()
    amp_trainer(tmp_path, plain, amp_epsilon=0.1, **settings).train()
    assert largest_difference(parameters_of(bagged), parameters_of(plain)) == 0.0
    name = {changed_in_place: "bag.x", changed_in_a_tuple: "bag.more.parts.0.0"}.get(take)
    assert caplog.text.count("changes its inputs in place") == (name is not None)
    assert name is None or name in caplog.text


def test_an_object_that_batches_share_keeps_what_the_descent_puts_into_it(tmp_path):
    class Bank:
        def __init__(self):
            self.batches, self.total, self.seen = 0, torch.zeros(()), []

    class Banked(TinyModel):
        def forward(self, x, labels=None, bank=None):
            bank.batches += 1
            bank.total.add_(len(x))
            bank.seen.append(len(x))
            return super().forward(x, labels)

    def collate(rows):
        return {"bank": bank, **{name: torch.stack([row[name] for row in rows]) for name in rows[0]}}

    bank = Bank()
    options = {"data_collator": collate, "remove_unused_columns": False, "amp_epsilon": 0.1}
    trainer = amp_trainer(tmp_path, tiny_model(Banked), data=Points(24), **options)
    trainer.train()
    assert bank.seen == [8] * trainer.state.global_step
    assert (bank.batches, bank.total) == (trainer.state.global_step, sum(bank.seen))

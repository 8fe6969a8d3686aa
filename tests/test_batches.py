import pytest
import torch
from transformers import BatchEncoding

from hf_amp.batches import Samples, first_samples, tensor_shapes


def batch(size=8):
    return {"x": torch.arange(size * 3).view(size, 3), "labels": torch.arange(size), "mask": torch.ones(1, 3)}


def share_of(inputs, fraction):
    (share,), _ = first_samples([inputs], fraction)
    return share


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 8), (0.5, 4), (0.25, 2), (0.06, 1), (0.2, 2), (1e-9, 1)])
def test_the_first_samples_are_taken_at_least_one(fraction, count):
    share = share_of(batch(), fraction)
    assert torch.equal(share["x"], batch()["x"][:count])
    assert torch.equal(share["labels"], batch()["labels"][:count])


@pytest.mark.parametrize("fraction", [0.01, 0.06, 0.12, 0.25, 0.3, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("sizes", [(32,), (8, 8, 8, 8), (20, 12), (1,) * 32, (9, 9, 9, 5)])
def test_the_share_is_of_all_samples_however_they_are_split_and_takes_the_fewest_passes(fraction, sizes):
    samples = torch.arange(32)
    micro_batches = [{"x": part} for part in samples.split(sizes)]
    share, counts = first_samples(micro_batches, fraction)
    count = max(1, int(32 * fraction + 0.5))
    assert torch.equal(torch.cat([inputs["x"] for inputs in share]), samples[:count])
    assert counts == [len(inputs["x"]) for inputs in share]
    assert sum(sizes[: len(share) - 1]) < count  # none of the passes could be left out


def test_all_micro_batches_of_a_whole_batch_count_the_same_as_they_do_for_trainer():
    micro_batches = [batch(8), batch(3)]
    assert first_samples(micro_batches, 1.0) == (micro_batches, [1, 1])


def test_inputs_without_tensors_count_as_one_sample_and_stay_whole():
    texts = [{"text": "abc"}] * 4
    assert first_samples(texts, 0.5) == (texts[:2], [1, 1])
    assert first_samples(texts[:1], 0.5) == (texts[:1], [1])


def test_what_has_no_batch_dimension_stays_whole():
    inputs = batch() | {"scale": torch.tensor(2.0), "name": "a", "flag": None}
    share = share_of(inputs, 0.5)
    assert share["mask"].shape == (1, 3)
    assert (share["scale"], share["name"], share["flag"]) == (2.0, "a", None)


def test_the_inputs_are_not_changed():
    inputs = batch()
    share_of(inputs, 0.5)
    assert inputs["x"].shape == (8, 3)


def test_nested_inputs_and_lists_of_samples_are_cut():
    inputs = {
        "pair": (torch.zeros(4, 2), [torch.zeros(4), torch.zeros(1)]),
        "boxes": [{"id": i} for i in range(4)],
        "inner": {"x": torch.zeros(4)},
    }
    share = share_of(inputs, 0.5)
    assert share["pair"][0].shape == (2, 2)
    assert [tensor.shape[0] for tensor in share["pair"][1]] == [2, 1]
    assert share["boxes"] == [{"id": 0}, {"id": 1}]
    assert share["inner"]["x"].shape == (2,)


def test_batch_encodings_keep_their_type():
    share = share_of(BatchEncoding({"input_ids": torch.zeros(4, 5)}), 0.25)
    assert isinstance(share, BatchEncoding)
    assert share["input_ids"].shape == (1, 5)


def test_shapes_of_the_tensors_of_a_mapping():
    assert tensor_shapes(batch() | {"name": "a"}) == [(8, 3), (8,), (1, 3)]
    assert tensor_shapes(BatchEncoding({"x": torch.ones(2, 5)})) == [(2, 5)]
    assert tensor_shapes([torch.ones(2)]) == []


def test_the_number_of_samples_is_that_of_the_labels_and_not_of_the_first_tensor():
    weights = torch.ones(10)
    share, counts = first_samples([{"class_weights": weights, **batch(32)}], 0.25)
    assert counts == [8]
    assert share[0]["class_weights"] is weights
    assert len(share[0]["x"]) == len(share[0]["labels"]) == 8


def test_without_labels_it_is_that_of_the_usual_inputs_or_of_most_tensors():
    usual = {"position_bias": torch.zeros(2, 3), "input_ids": torch.zeros(8, 3)}
    assert share_of(usual, 0.5)["input_ids"].shape[0] == 4
    votes = {"a": torch.zeros(3), "b": torch.zeros(8, 2), "c": torch.zeros(8)}
    assert share_of(votes, 0.5)["b"].shape[0] == 4


def test_texts_count_as_samples():
    share, counts = first_samples([{"sentence": ["a", "b", "c", "d"], "label": torch.zeros(4)}], 0.5)
    assert (share[0]["sentence"], counts) == (["a", "b"], [2])
    share, counts = first_samples([["a", "b", "c", "d"]], 0.5)
    assert (share, counts) == ([["a", "b"]], [2])


@pytest.mark.parametrize(
    "packed",
    [
        {"input_ids": torch.zeros(1, 40), "labels": torch.zeros(1, 40), "position_ids": torch.zeros(1, 40)},
        {"input_ids": torch.zeros(4, 40), "labels": torch.zeros(4, 40), "cu_seq_lens_q": torch.zeros(9)},
        {"input_ids": torch.zeros(4, 40), "pixel_values": torch.zeros(100, 3), "labels": torch.zeros(4, 40)},
    ],
)
def test_packed_and_ragged_inputs_stay_whole(packed):
    share, counts = first_samples([packed], 0.25)
    assert share[0] is packed
    assert counts == [1]


def test_at_least_as_many_samples_are_taken_as_make_sense():
    def pairs(inputs):
        return Samples(len(inputs["x"]), lambda count: {"x": inputs["x"][:count]}, least=2)

    micro_batches = [{"x": torch.arange(4)}] * 3
    for fraction, counts in ((0.01, [2]), (0.25, [3]), (0.4, [4, 2]), (1 / 3, [4])):
        assert first_samples(micro_batches, fraction, pairs)[1] == counts
    assert first_samples([{"x": torch.arange(1)}], 0.1, pairs)[1] == [1]

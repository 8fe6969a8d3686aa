"""What of a checkpoint is brought into the folder that is pushed, and in which order pushes run."""

import threading
import time
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from hf_amp.hub.upload import background
from hf_amp.hub.upload.background import BackgroundPushes, copy_model

MODEL = ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "modeling_x.py")
MODEL += ("adapter_config.json", "adapter_model.safetensors", "training_args.bin")
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "pytorch_model_fsdp.bin", "README.md")


def test_the_model_is_copied_and_the_state_of_training_is_not(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "out").mkdir()
    for name in (*MODEL, *STATE):
        (tmp_path / "checkpoint-1" / name).write_text(name)
    copy_model(tmp_path / "checkpoint-1", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(MODEL)


@pytest.mark.parametrize(
    ("strategy", "places"),
    [("every_save", [None]), ("checkpoint", [None, "last-checkpoint"]), ("all_checkpoints", [None, "checkpoint-3"])],
)
@pytest.mark.parametrize(("save_strategy", "when"), [("steps", "step 3"), ("epoch", "epoch 2")])
def test_uploads_run_one_after_the_other_and_each_is_reported(
    tmp_path, monkeypatch, strategy, places, save_strategy, when
):
    uploads, reported, under_way, seen_running = [], [], threading.Lock(), threading.Event()

    def upload(api, run_as_future, **words):
        assert run_as_future

        def run():
            assert under_way.acquire(blocking=False), "two at a time"
            uploads.append(words)
            assert seen_running.wait(60)
            time.sleep(0.05)
            under_way.release()
            raise OSError("no network")

        return api.run_as_future(run)

    monkeypatch.setattr(background.HfApi, "upload_folder", upload)
    args = TrainingArguments(
        str(tmp_path), hub_strategy=strategy, hub_token="hf_x", save_strategy=save_strategy, use_cpu=True
    )
    pushes = BackgroundPushes(reported.append)
    assert not pushes.is_running()
    pushes.push(tmp_path / "checkpoint-3", "me/m", args, SimpleNamespace(global_step=3, epoch=2.0))
    assert pushes.is_running()
    seen_running.set()
    pushes.wait()
    assert not pushes.is_running()
    assert [words.get("path_in_repo") for words in uploads] == places
    messages = [f"Training in progress, {when}", f"Training in progress, {when}, checkpoint"]
    assert [words["commit_message"] for words in uploads] == messages[: len(places)]
    assert {(words["repo_id"], words["token"]) for words in uploads} == {("me/m", "hf_x")}
    deadline = time.monotonic() + 10
    while len(reported) < len(places) and time.monotonic() < deadline:  # a report comes just after the end
        time.sleep(0.01)
    assert [str(job.exception()) for job in reported] == ["no network"] * len(places)

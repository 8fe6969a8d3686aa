"""Publishing against the stand-in of the Hub: what arrives, what a stranger loads, and what happens when it fails."""

import json
import subprocess
import sys

import pytest
import torch
from commands import EXAMPLES
from hub_server import READ_TOKEN, WRITE_TOKEN, client_environment, run_client
from hub_server.cards import check_card
from huggingface_hub import ModelCard
from test_launch import torchrun
from tiny_images import image_split, random_images, write_parquet

from hf_amp.models import PreActResNetForImageClassification
from hf_amp.vision import DecodedImages, ImageCollator

pytest_plugins = ["hub_server.fixture"]
PROGRESS = "Training in progress, step"
TRAINER = """
import json, logging, os, sys, time
import torch
from transformers import AutoModelForImageClassification, Trainer
from hf_amp import AMPTrainer, AMPTrainerMixin, AMPTrainingArguments
from hf_amp.models import PreActResNetConfig

config = PreActResNetConfig(stem_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3, image_size=8)
images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
rows = [{"pixel_values": image, "labels": index % 3} for index, image in enumerate(images)]
wait, warned = time.sleep, []
time.sleep = lambda seconds: wait(min(seconds, 0.05))  # the clients wait up to 8 s before they try again


class Warned(logging.Handler):
    def emit(self, record):
        warned.append(record.getMessage())


logging.getLogger("hf_amp").addHandler(Warned(logging.WARNING))


def trainer(repository, folder=None, trainer_class=AMPTrainer, **options):
    torch.manual_seed(0)
    options = {"push_to_hub": True, "hub_model_id": f"tester/{repository}", "hub_always_push": True, **options}
    arguments = AMPTrainingArguments(
        output_dir=folder or repository, per_device_train_batch_size=4, learning_rate=0.1,
        amp_epsilon=0.1, lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True, report_to="none",
        dataloader_pin_memory=False, **{"max_steps": 4, "save_steps": 2, **options},
    )
    return trainer_class(AutoModelForImageClassification.from_config(config), arguments, train_dataset=rows)


def error_of(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return [type(error).__name__, str(error)]


def logits_of(model):
    with torch.no_grad():
        return model.eval()(images).logits
"""


def outcome(done):
    """Return what a client printed last, as JSON; show its errors where it failed."""
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def known(hub):
    return [str(call) for call in hub.calls if not call.known]


# --- what arrives, and what strangers do with it ---

PUSH = (
    TRAINER
    + """
place = sys.argv[1]
saves = trainer("saves", hub_strategy="every_save")
made_at_construction = os.listdir("saves") if os.path.isdir("saves") else []
saves.train()
saves.push_to_hub(commit_message="The end", license="mit", dataset="Noise", dataset_tags="tester/noise")
torch.save(logits_of(saves.model), f"{place}/saves.pt")

for strategy in ("checkpoint", "all_checkpoints", "end"):
    one = trainer(strategy, hub_strategy=strategy)
    one.train()
    one.push_to_hub()
class OnlyAMP(AMPTrainerMixin, Trainer):
    pass


bare = trainer("bare", trainer_class=OnlyAMP, push_to_hub=False, max_steps=1)
bare.train()
bare.push_to_hub()
whole = trainer("whole", push_to_hub=False, max_steps=6)
whole.train()
torch.save(whole.model.state_dict(), f"{place}/whole.pt")
later = trainer("later", push_to_hub=False)
later.train()
later.push_to_hub()
pushed = later.push_to_hub("In the background", blocking=False, license="mit").result()
print(json.dumps({"early": made_at_construction, "warned": warned, "commit": pushed.commit_message}))
"""
)
LOAD = (
    """
import sys

sys.modules["hf_amp"] = None  # cannot be imported
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("tester/saves", trust_remote_code=True)
under_way = AutoModelForImageClassification.from_pretrained(
    "tester/saves", revision=sys.argv[2], trust_remote_code=True
)
assert type(model).__module__.startswith("transformers_modules."), type(model)
del sys.modules["hf_amp"]
"""
    + TRAINER
    + """
from huggingface_hub import snapshot_download

place = sys.argv[1]
folder = snapshot_download("tester/checkpoint", allow_patterns="last-checkpoint/*")
resumed = trainer("resumed", push_to_hub=False, max_steps=6)
began = json.load(open(f"{folder}/last-checkpoint/trainer_state.json"))["global_step"]
resumed.train(resume_from_checkpoint=f"{folder}/last-checkpoint")
expected = torch.load(f"{place}/whole.pt")
print(json.dumps({
    "logits": torch.equal(logits_of(model), torch.load(f"{place}/saves.pt")),
    "under way": torch.equal(logits_of(under_way), logits_of(model)),
    "steps": [began, resumed.state.global_step],
    "weights": all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items()),
}))
"""
)


@pytest.mark.slow
def test_every_strategy_pushes_code_and_card_and_a_stranger_loads_and_resumes(hub, tmp_path):
    told = outcome(run_client(hub, tmp_path / "author", PUSH, tmp_path))
    assert told == {"early": [], "warned": [], "commit": "In the background"}
    assert hub.titles("tester/saves") == ["initial commit", *(f"{PROGRESS} {step}" for step in (2, 4)), "The end"]
    assert hub.titles("tester/checkpoint")[1:-1] == [
        f"{PROGRESS} {step}{what}" for step in (2, 4) for what in ("", ", checkpoint")
    ]
    assert hub.titles("tester/end") == ["initial commit", "End of training"]
    assert hub.titles("tester/later")[-2:] == ["End of training", "In the background"]
    needed = {"README.md", "config.json", "model.safetensors", "modeling_preactresnet.py", "modeling_small_image.py"}
    commits = list(hub.repositories["models", "tester/saves"].at("main").history())[::-1]
    for commit in commits[1:]:
        assert needed <= set(commit.files), commit.title
        card = commit.files["README.md"].content.decode()
        assert check_card(card) == ([], [])
        assert ("step 2 of 4" in card) == (commit.title == f"{PROGRESS} 2")
    card = hub.files("tester/saves")["README.md"].decode()
    data = ModelCard(card).data
    assert data.tags == ["adversarial-model-perturbation", "hf_amp"]
    assert (data.license, data.library_name, data.datasets) == ("mit", "transformers", ["tester/noise"])
    assert "`amp_epsilon` | `0.1`" in card
    assert 'from_pretrained("tester/saves", trust_remote_code=True)' in card
    bare = hub.files("tester/bare")["README.md"].decode()
    assert "generated automatically according to the information the Trainer had" in bare
    assert "`amp_epsilon` | `0.1`" in bare
    assert check_card(bare) == ([], [])
    state = ("optimizer.pt", "trainer_state.json", "rng_state.pth")
    assert {f"last-checkpoint/{name}" for name in state} <= set(hub.files("tester/checkpoint"))
    assert {f"checkpoint-{step}/{name}" for step in (2, 4) for name in state} <= set(
        hub.files("tester/all_checkpoints")
    )
    loaded = outcome(run_client(hub, tmp_path / "stranger", LOAD, tmp_path, commits[1].oid, token=None))
    assert loaded == {"logits": True, "under way": False, "steps": [4, 6], "weights": True}
    assert not known(hub)


# --- before training ---

REFUSED = (
    TRAINER
    + """
told = {
    "bad": error_of(trainer, "new", hub_token="hf_wrong"),
    "read": error_of(trainer, "there", hub_token=sys.argv[1]),
    "namespace": error_of(trainer, "x", hub_model_id="somebody/there"),
    "taken": error_of(trainer, "x", hub_model_id="tester/not allowed"),
}
del os.environ["HF_TOKEN"]
told["none"] = error_of(trainer, "new")
os.environ["HF_TOKEN"] = sys.argv[2]
told["server"] = error_of(trainer, "new")
branch = trainer("branch", hub_revision="trial")
branch.train()
branch.push_to_hub()
unchecked = trainer("there", hub_check=False, hub_token=sys.argv[1], hub_strategy="end", max_steps=1)
unchecked.train()
told["unchecked"] = [unchecked.state.global_step, error_of(unchecked.push_to_hub)]
print(json.dumps(told))
"""
)


@pytest.mark.slow
def test_what_cannot_work_stops_before_training_with_reason_and_remedy(hub, tmp_path):
    hub.add("tester/there")
    hub.add("somebody/there")
    # The calls before it ask who the token's owner is: bad, read, namespace, taken.
    hub.fail("/api/whoami-v2", status=500, after=4)
    told = outcome(run_client(hub, tmp_path / "author", REFUSED, READ_TOKEN, WRITE_TOKEN))
    for case, parts in {
        "bad": ["The Hub refuses the token for tester/new", "401", "/settings/tokens"],
        "read": ["may not write to tester/there", "'read'", "role 'write'"],
        "namespace": ["somebody/there belongs to somebody", "give a `hub_model_id` such as tester/there"],
        "taken": ["tester/not allowed cannot be made on the Hub"],
        "none": ["no token to push to tester/new", "hf auth login", "HF_TOKEN"],
        "server": ["cannot be asked about tester/new", "500"],
    }.items():
        name, text = told[case]
        assert name == "PublishingError", case
        assert all(part in text for part in [*parts, "hub_check=False", "HF_HUB_OFFLINE=1"]), text
    assert ("models", "tester/new") not in hub.repositories
    assert hub.titles("tester/branch", "trial")[-1] == "End of training"
    assert hub.titles("tester/branch") == ["initial commit"]
    # Without the check Trainer begins, and fails at its last push: the model is there all the same.
    steps, (name, text) = told["unchecked"]
    assert (steps, name) == (1, "PublishingError")
    assert "python -m hf_amp.push there --repo tester/there" in text
    assert (tmp_path / "author" / "there" / "model.safetensors").is_file()
    assert not known(hub)


OFFLINE = (
    TRAINER
    + """
saves = trainer("saves", hub_strategy="every_save", hub_private_repo=True)
saves.train()
saves.save_model()  # of which scripts of transformers expect no error, and evaluate afterwards
told = {"steps": saves.state.global_step, "warned": warned, "card": os.listdir("saves")}
print(json.dumps({**told, "end": error_of(saves.push_to_hub)}))
"""
)


@pytest.mark.slow
def test_offline_mode_trains_and_the_command_of_the_message_publishes(hub, tmp_path, monkeypatch):
    # `client_environment` drops it from the environment, as the tests must not depend on the outside.
    script = "import os\nos.environ['HF_HUB_OFFLINE'] = '1'\n" + OFFLINE
    told = outcome(run_client(hub, tmp_path / "author", script))
    assert not hub.calls
    assert told["steps"] == 4
    command = "python -m hf_amp.push saves --repo tester/saves --private"
    assert [command in text for text in told["warned"]] == [True]
    assert {"README.md", "model.safetensors"} <= set(told["card"])
    name, text = told["end"]
    assert name == "PublishingError"
    assert "The push to tester/saves failed: offline mode is on (HF_HUB_OFFLINE)." in text
    assert command in text
    pushed = push(hub, tmp_path / "author", *command.split()[3:])
    assert pushed.returncode == 0, pushed.stderr
    assert hub.repositories["models", "tester/saves"].private
    assert {"README.md", "model.safetensors", "modeling_preactresnet.py"} <= set(hub.files("tester/saves"))


def push(hub, home, *words, token=WRITE_TOKEN):
    command = [sys.executable, "-m", "hf_amp.push", *words]
    environment = client_environment(hub, home, token)
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)


# --- while and after training ---

FAULTS = (
    TRAINER
    + """
told = {}
for name in sys.argv[1:]:
    one = trainer(name, hub_strategy="end", max_steps=1)
    one.train()
    told[name] = error_of(one.push_to_hub)
print(json.dumps(told))
"""
)
LATER = """
import sys
from hf_amp.push import main

for name in sys.argv[1:]:
    main([name, "--repo", f"tester/{name}"])
"""
BACKGROUND = (
    TRAINER
    + """
background = trainer("background", hub_strategy="every_save", hub_token=os.environ["HF_TOKEN"])
background.train()
told = {"warned": warned, "finished": background.state.global_step, "again": error_of(background.push_to_hub)}
futures = trainer("later", hub_strategy="end", max_steps=1)
futures.train()
later = error_of(futures.push_to_hub(blocking=False).result)
wait(0.5)  # the report comes after the result
told["later"] = [later, warned[2:]]
nobody = trainer("nobody", push_to_hub=False, max_steps=1)
nobody.train()
told["init"] = error_of(nobody.push_to_hub)
print(json.dumps(told))
"""
)


@pytest.mark.slow
def test_failed_pushes_lose_nothing_say_so_and_complete_later(hub, tmp_path):
    home = tmp_path / "author"
    hub.fail("/tester/preupload/preupload/", status=503, times=100)
    hub.fail("/tester/committed/commit/", status=503, times=100)
    hub.fail("/tester/dropped/commit/", drop=True, times=100)
    hub.fail("/tester/missing/(preupload|commit)/", status=404, times=100)
    told = outcome(run_client(hub, home, FAULTS, "preupload", "committed", "dropped", "missing"))
    hub.fail("^/objects/", method="PUT", status=503, times=100)
    hub.fail("/tester/gone/preupload/", gone=True)
    told |= outcome(run_client(hub, home, FAULTS, "storage", "gone"))
    reasons = {"preupload": "503", "storage": "503", "committed": "503", "dropped": "", "missing": "404", "gone": ""}
    for name, reason in reasons.items():
        kind, text = told[name]
        assert kind == "PublishingError", name
        assert f"The push to tester/{name} failed" in text
        assert reason in text
        assert "Nothing is lost: model and card are in" in text
        assert f"python -m hf_amp.push {name} --repo tester/{name}" in text
        assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in (home / name).iterdir()}
    hub._faults.clear()
    hub.start()
    assert all(hub.titles(f"tester/{name}") == ["initial commit"] for name in reasons)
    later = run_client(hub, home, LATER, *reasons)
    assert later.returncode == 0, later.stderr
    for name in reasons:
        assert hub.files(f"tester/{name}")["model.safetensors"] == (home / name / "model.safetensors").read_bytes()
    assert not known(hub)


@pytest.mark.slow
def test_failures_in_the_background_and_of_a_new_repository_are_reported(hub, tmp_path):
    home = tmp_path / "author"
    fault = hub.fail("/tester/background/commit/", status=503, times=2)
    hub.fail("/tester/later/commit/", status=503, times=100)
    hub.fail("/api/repos/create", status=503, after=2, times=100)
    told = outcome(run_client(hub, home, BACKGROUND))
    failed = [text for text in told["warned"] if "A push in the background to tester/background failed" in text]
    assert len(failed) == 2, told["warned"]
    assert "503" in failed[0]
    assert "python -m hf_amp.push background --repo tester/background" in failed[0]
    assert (fault.times, told["finished"], told["again"]) == (0, 4, None)
    assert hub.titles("tester/background") == ["initial commit", "End of training"]
    assert WRITE_TOKEN.encode() not in (home / "background" / "training_args.bin").read_bytes()
    assert WRITE_TOKEN.encode() not in hub.files("tester/background")["training_args.bin"]
    error, reported = told["later"]
    assert error is not None
    assert ["A push in the background to tester/later failed" in text for text in reported] == [True]
    name, text = told["init"]
    assert name == "PublishingError"
    assert "cannot be made on the Hub" in text
    assert "python -m hf_amp.push nobody --repo tester/nobody" in text
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in (home / "nobody").iterdir()}


TWO = (
    TRAINER
    + """
import torch.distributed as dist

one = trainer("two", hub_strategy="every_save", save_steps=1, max_steps=2, ddp_backend="gloo")
one.train()
result = one.push_to_hub()
ranks = [None, None]
dist.all_gather_object(ranks, result is not None)
if dist.get_rank() == 0:
    print("\\n" + json.dumps(ranks), flush=True)
trainer("refused", hub_model_id="somebody/there")
dist.barrier()  # where the other process waits for the one that was refused
"""
)


@pytest.mark.slow
def test_of_two_processes_one_pushes_and_both_end_when_it_is_refused(hub, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**client_environment(hub, tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [*torchrun(2), str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert json.loads(next(line for line in done.stdout.splitlines() if line.startswith("["))) == [True, False]
    assert hub.titles("tester/two") == ["initial commit", f"{PROGRESS} 1", f"{PROGRESS} 2", "End of training"]
    assert "2 process(es)" in hub.files("tester/two")["README.md"].decode()
    assert done.returncode != 0
    assert "somebody/there belongs to somebody, and tester, the owner of the token, is no member of it" in done.stderr


# --- the image pipeline ---

IMAGES = """
import sys
sys.argv = ["examples/image_classification.py", *sys.argv[1:]]
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
CLASSIFY = """
import json, sys
sys.modules["hf_amp"] = None  # cannot be imported
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

classifier = pipeline("image-classification", model="tester/tiny", trust_remote_code=True, top_k=10)
best = AutoModelForImageClassification.from_pretrained("tester/tiny", subfolder="best", trust_remote_code=True)
told = {"best": type(best).__name__, "answers": []}
for path in sys.argv[1:]:
    told["answers"].append({one["label"]: one["score"] for one in classifier(Image.open(path))})
print(json.dumps(told))
"""


@pytest.mark.slow
def test_image_pipeline_trains_from_the_hub_and_a_stranger_classifies_raw_images(hub, tmp_path):
    splits = {
        "train": image_split(30, classes=10, image="img", size=(32, 32)),
        "test": image_split(12, classes=10, image="img", size=(32, 32), seed=1),
    }
    written = write_parquet(tmp_path / "plain_text", **splits)
    files = {f"plain_text/{path.name}": path.read_bytes() for path in written.iterdir()}
    hub.add("uoft-cs/cifar10", files, kind="datasets")
    small = json.dumps({"stem_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]})
    home = tmp_path / "author"
    flags = ["--dataset", "cifar10", "--model_args", small, "--num_train_epochs", "2", "--use_cpu", "--license", "mit"]
    flags += ["--per_device_train_batch_size", "10", "--amp_epsilon", "0.05", "--output_dir", "out", "--push_to_hub"]
    flags += ["--hub_model_id", "tester/tiny", "--hub_strategy", "every_save", "--save_strategy", "epoch"]
    flags += ["--hub_token", WRITE_TOKEN, "--hub_always_push"]
    done = run_client(hub, home, IMAGES, EXAMPLES / "image_classification.py", *flags)
    assert done.returncode == 0, done.stderr[-5000:]
    titles = hub.titles("tester/tiny")
    assert titles == ["initial commit", f"{PROGRESS[:-5]} epoch 1", f"{PROGRESS[:-5]} epoch 2", "End of training"]
    pushed = hub.files("tester/tiny")
    assert not [name for name, content in pushed.items() if WRITE_TOKEN.encode() in content]
    results = json.loads(pushed["results.json"])
    card = ModelCard(pushed["README.md"].decode())
    values = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert values["accuracy, last epoch"] == results["test"]["last"]["accuracy"]
    assert card.data.eval_results[0].dataset_type == "uoft-cs/cifar10"
    assert (card.data.datasets, card.data.license) == (["uoft-cs/cifar10"], "mit")
    assert check_card(card.content) == ([], [])
    assert pushed["learning_curves.png"].startswith(b"\x89PNG")
    assert 'pipeline("image-classification", model="tester/tiny", trust_remote_code=True)' in card.text
    assert "hub_token" not in card.text

    images = [*random_images(1, (32, 32), seed=7), *random_images(1, (48, 48), seed=8)]
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    told = outcome(run_client(hub, tmp_path / "stranger", CLASSIFY, *paths, token=None))
    assert told["best"] == "PreActResNetForImageClassification"
    model = PreActResNetForImageClassification.from_pretrained(home / "out" / "seed_42")
    collator = ImageCollator("cifar10", augmentation="none", train=False)
    with torch.no_grad():
        batch = collator([DecodedImages(image_split(1, classes=1, images=images[:1]))[0]])
        expected = model(pixel_values=batch["pixel_values"]).logits.softmax(-1)[0]
    for label, score in told["answers"][0].items():
        assert score == pytest.approx(expected[model.config.label2id[label]].item(), abs=1e-5)
    assert sum(told["answers"][1].values()) == pytest.approx(1, abs=1e-5)
    assert not known(hub)

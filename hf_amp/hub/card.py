"""Model cards: from recorded facts to text. It knows no network and no training, and invents nothing."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_amp.hub.access import PublishingError
from hf_amp.hub.text.places import without_places
from hf_amp.hub.text.rendering import LABELS, template

CARD_NAME = "README.md"
AMP_TAG, LIBRARY_TAG = "adversarial-model-perturbation", "hf_amp"
_SEAL = re.compile(r"<!-- Written by hf_amp for (?P<repo>.+); a card that was changed is kept\. (?P<digest>\w+) -->\n")
_DRAFTS = (
    "generated automatically according to the information the Trainer had access to",
    "# Model Card for Model ID",  # PEFT's
)
METADATA = re.compile(r"\A---[ \t]*\r?\n(.*?)\r?\n---[ \t]*\r?\n", re.DOTALL)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of some weights on some data.

    Args:
        weights: which weights, e.g. `"last epoch"`.
        split: which data, e.g. `"test"`.
        metrics: name → value; `accuracy`, `error_rate` and `ece` in [0, 1]. What is not a finite number is left out.
    """

    weights: str
    split: str
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        finite = {name: _plain_number(value) for name, value in self.metrics.items()}
        object.__setattr__(self, "metrics", {name: value for name, value in finite.items() if value is not None})


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says. What is not known stays empty and is not mentioned.

    Paths of the author's machine become their last name, in every text but `usage`, which is code.

    Args:
        model_name: title of the card.
        repo_id: where the model is, or will be, on the Hub (`user/name`), or a name for it.
        summary: one paragraph: what the model is.
        usage: Python code that loads the model.
        method: one paragraph: how it was trained; empty where no method has a name.
        usage_notes: paragraphs after that code.
        progress: a sentence, where training is not finished.
        library_name: of the card's metadata.
        pipeline_tag: the task, e.g. `"image-classification"`.
        license: licence identifier of the Hub.
        language: language code(s).
        base_model: Hub id of the model that training began with.
        tags: tags beside those of this library.
        datasets: Hub ids of the training data.
        dataset_name: name of the evaluation data; without it no result is put in the model index.
        dataset_type: Hub id, or a short name, of the evaluation data.
        dataset_config: its configuration.
        evaluations: results.
        compared: rows `label`, `seeds`, `error_rate`, `nll`, `ece` (texts) of other methods in the same comparison.
        figures: (caption, file in the folder).
        remote_code: whether the folder holds the modelling code.
        perturbed: whether the weights were trained with adversarial model perturbation.
        amp: the settings of the perturbation.
        arguments: the training arguments that differ from their defaults.
        training: further facts of the run, name → text.
        command: shell command that repeats it.
        versions: package → version.
        hardware: one line.
        caveats: sentences.
    """

    model_name: str
    repo_id: str
    summary: str
    usage: str
    method: str = ""
    usage_notes: Sequence[str] = ()
    progress: str | None = None
    library_name: str = "transformers"
    pipeline_tag: str | None = None
    license: str | None = None
    language: str | list[str] | None = None
    base_model: str | None = None
    tags: Sequence[str] = ()
    datasets: Sequence[str] = ()
    dataset_name: str | None = None
    dataset_type: str | None = None
    dataset_config: str | None = None
    evaluations: Sequence[Evaluation] = ()
    compared: Sequence[Mapping[str, str]] = ()
    figures: Sequence[tuple[str, str]] = ()
    remote_code: bool = False
    perturbed: bool = False
    amp: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    caveats: Sequence[str] = ()

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name != "usage":
                object.__setattr__(self, one.name, without_places(getattr(self, one.name)))

    @property
    def measures(self) -> list[str]:
        """Names of all that was measured, in the order in which they come first."""
        return list(dict.fromkeys(name for one in self.evaluations for name in one.metrics))

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values; JSON has no word for inf and nan, so that they become text."""
        return json.loads(json.dumps(asdict(self), default=str), parse_constant=lambda word: str(float(word)))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CardFacts":
        """Read what `to_json` returned; what a newer version added is left out."""
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in content.items() if name in known}
        return cls(**{**values, "evaluations": [Evaluation(**one) for one in values.get("evaluations", ())]})


def eval_results(facts: CardFacts) -> list[EvalResult]:
    """Return the results for the model index: none unless task and data are known."""
    if facts.pipeline_tag is None or facts.dataset_name is None or facts.dataset_type is None:
        return []
    return [
        EvalResult(
            task_type=facts.pipeline_tag,
            dataset_type=facts.dataset_type,
            dataset_name=facts.dataset_name,
            dataset_config=facts.dataset_config,
            dataset_split=one.split,
            metric_type=name,
            metric_name=f"{LABELS.get(name, name)}, {one.weights}",
            metric_value=value,
        )
        for one in facts.evaluations
        for name, value in one.metrics.items()
    ]


def render_card(facts: CardFacts) -> str:
    """Return the whole card, metadata and text.

    Raises:
        ValueError: if the Hub's own rules for metadata do not hold.
    """
    results = eval_results(facts)
    data = ModelCardData(
        language=facts.language,
        license=facts.license,
        library_name=facts.library_name,
        pipeline_tag=facts.pipeline_tag,
        tags=own_tags(facts),
        datasets=list(facts.datasets) or None,
        base_model=facts.base_model,
        metrics=sorted({one.metric_type for one in results}) or None,
        model_name=facts.model_name if results else None,
        eval_results=results or None,
    )
    body = template("model_card.md").render(facts=facts).strip() + "\n"
    card = f"---\n{data.to_yaml().strip()}\n---\n\n{body}"
    ModelCard(card)  # strict: reads the metadata back
    return seal(card, facts.repo_id)


def read_card(path: Path) -> str:
    """Return the text of a card.

    Raises:
        PublishingError: it is not UTF-8, as the Hub wants it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PublishingError(
            f"{path} must be UTF-8 text, and its byte {error.start} (0x{error.object[error.start]:02x}) is not; save "
            "it as UTF-8, or delete it"
        ) from error


def own_tags(facts: CardFacts) -> list[str]:
    """Return the tags of the card; only weights trained with the perturbation are called so."""
    own = [AMP_TAG, LIBRARY_TAG] if facts.perturbed else [LIBRARY_TAG]
    return [*own, *(tag for tag in facts.tags if tag not in own)]


def seal(card: str, repo_id: str) -> str:
    """Return the card with a line by which `is_untouched` sees later whether somebody changed it."""
    plain = _SEAL.sub("", card)
    metadata = METADATA.match(plain)
    place = metadata.end() if metadata else 0
    line = f"<!-- Written by hf_amp for {repo_id}; a card that was changed is kept. {_digest(plain)} -->\n"
    return plain[:place] + line + plain[place:]


def is_untouched(card: str) -> bool:
    """Whether a card is, letter by letter, what this library wrote."""
    found = _SEAL.search(card)
    return found is not None and found["digest"] == _digest(_SEAL.sub("", card, count=1))


def is_generated(card: str) -> bool:
    """Whether nobody's work is lost if a card is written anew: ours, a draft of `Trainer` or PEFT, or nothing."""
    return is_untouched(card) or any(part in card for part in _DRAFTS) or not card.strip()


def moved_to(card: str, repo_id: str) -> str:
    """Return an untouched card for another place on the Hub: the code in it loads from there, and it is named so."""
    found = _SEAL.search(card)
    if found is None or not is_untouched(card) or found["repo"] == repo_id:
        return card
    card = card.replace(f'"{found["repo"]}"', f'"{repo_id}"')
    before, name = (place.rpartition("/")[2] for place in (found["repo"], repo_id))
    card = card.replace(f"\n# {before}\n", f"\n# {name}\n", 1)
    card = re.sub(rf'^- name: "?{re.escape(before)}"?$', f'- name: "{name}"', card, count=1, flags=re.MULTILINE)
    return seal(card, repo_id)


def _digest(text: str) -> str:
    return hashlib.sha256(text.replace("\r\n", "\n").encode()).hexdigest()[:16]


def _plain_number(value: Any) -> float | int | None:
    """A Python number; None for what is not a finite one. Numpy's would put Python tags into the YAML."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = int(value) if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None

"""This library's section in the model card that another Trainer writes."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import ModelCard
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from hf_amp.files import write_whole
from hf_amp.hub.card import CARD_NAME, METADATA, CardFacts, own_tags, read_card
from hf_amp.hub.facts import NO_DEFENCE, facts_of_trainer
from hf_amp.hub.text.rendering import template
from hf_amp.logs import TrainingClock
from hf_amp.radius import RadiusCallback
from hf_amp.training_args import AMPSettings

PERTURBED = (
    "The weights were trained with adversarial model perturbation (AMP): each step{} moved them to (nearly) the worst "
    "point within a radius ε, took the gradient there, put them back and let the optimizer apply it. In this card AMP "
    "never means automatic mixed precision."
)
NOT_PERTURBED = "The weights were trained without adversarial model perturbation: it was switched off."
NOTHING_TO_PERTURB = (
    "The weights were trained without adversarial model perturbation: its radius follows how far a training over-fits, "
    "and no step of this one had a radius above 0{}."
)
_BEGIN, _END = "<!-- hf_amp: begin -->", "<!-- hf_amp: end -->"
_TrainerBehind = Trainer if TYPE_CHECKING else object


@dataclass(frozen=True)
class CardArguments:
    """What `Trainer.create_model_card` can be told, in its order."""

    language: str | None = None
    license: str | None = None
    tags: str | list[str] | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: str | list[str] | None = None
    dataset_tags: str | list[str] | None = None
    dataset: str | list[str] | None = None
    dataset_args: str | list[str] | None = None


class CardSectionMixin(_TrainerBehind):
    """Adds a section on the training to the card that the Trainer behind it writes, and brings it up to date."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer behind this mixin does, and count the seconds, those before a resume included."""
        if TrainingClock.of(self) is None:
            self.add_callback(TrainingClock())
        return super().train(*args, **kwargs)

    def card_facts(self, **card: Any) -> CardFacts:
        """Return what the card says. Override it to say more.

        Args:
            card: the arguments of `Trainer.create_model_card`.
        """
        return facts_of_trainer(self, **card)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the Trainer behind this mixin, and add the section to it.

        Args:
            args: those of the `create_model_card` of the Trainer behind the mixin.
            kwargs: the same.
        """
        if not self.is_world_process_zero():
            return
        Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
        super().create_model_card(*args, **kwargs)
        known = {one.name for one in fields(CardArguments)}
        self._write_section({name: value for name, value in kwargs.items() if name in known})

    def _write_section(self, card: dict[str, Any]) -> None:
        path, facts = Path(str(self.args.output_dir)) / CARD_NAME, self.card_facts(**card)
        text = read_card(path) if path.is_file() else f"# {facts.model_name}\n"
        write_whole(path, with_section(text, facts).encode())

    def _has_its_own_card(self) -> bool:
        """Whether the Trainer behind this mixin writes another card than `transformers.Trainer` does."""
        behind = super().create_model_card
        return getattr(behind, "__func__", None) is not Trainer.create_model_card


class AMPCardMixin(CardSectionMixin):
    """Says in the card how the weights were perturbed; the base of `AMPTrainerMixin`."""

    def card_facts(self, **card: Any) -> CardFacts:
        """Return what the card says, the perturbation included. Override it to say more.

        Args:
            card: the arguments of `Trainer.create_model_card`.
        """
        facts, amp = super().card_facts(**card), AMPSettings.from_args(self.args)
        if amp.switched_off:
            return replace(facts, method=NOT_PERTURBED)
        settings = {f"amp_{name}": value for name, value in asdict(amp).items()}
        method = PERTURBED.format("")
        if amp.epsilon is None:
            radius = RadiusCallback.of(self)
            if radius is None or not radius.largest:
                is_evaluated = self.args.eval_strategy != IntervalStrategy.NO
                reason = "" if is_evaluated else ", since nothing was evaluated while it trained"
                return replace(facts, method=NOTHING_TO_PERTURB.format(reason))
            settings["amp_epsilon"] = f"as large as the training over-fitted, at most {radius.largest:.3g}"
            method = PERTURBED.format(" in which the training over-fitted")
        return replace(facts, perturbed=True, method=method, amp=settings, caveats=(*facts.caveats, NO_DEFENCE))


def with_section(card: str, facts: CardFacts) -> str:
    """Return somebody else's card with this library's section and tags added, or brought up to date.

    Args:
        card: text of the card, with or without metadata.
        facts: what the section says.
    """
    content = ModelCard(card, ignore_metadata_errors=True)
    data: Any = content.data
    metadata = METADATA.match(card)
    tags = (yaml.safe_load(metadata[1]) or {}).get("tags") if metadata else None
    # Not from `data`: some versions take a single tag letter by letter.
    tags = [tags] if isinstance(tags, str) else tags or []
    data.tags = [*tags, *(tag for tag in own_tags(facts) if tag not in tags)]
    before, found, rest = content.text.strip().partition(_BEGIN)
    after = rest.partition(_END)[2] if found else ""
    section = f"{_BEGIN}\n\n{template('amp_section.md').render(facts=facts).strip()}\n\n"
    if facts.method and "zheng2021regularizing" not in before + after:
        section += f"## Citation of the training method\n\n{template('citation.md').render().strip()}\n\n"
    text = f"{before.rstrip()}\n\n{section}{_END}{after}"
    return f"---\n{data.to_yaml().strip()}\n---\n\n{text.strip()}\n"

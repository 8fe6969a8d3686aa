"""Model cards that are written, or completed, after their training: by comparisons and figures of flatness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_amp.files import write_whole
from hf_amp.hub.card import CardFacts, is_untouched, render_card
from hf_amp.hub.facts import figures_in
from hf_amp.hub.mixin import CARD_NAME
from hf_amp.vision.report.results import format_mean, read_json, write_json

FACTS_NAME = "card.json"


def write_image_card(folder: Path, facts: CardFacts) -> None:
    """Write a card and the facts that it was made of; a card that somebody changed is kept."""
    write_json(folder / FACTS_NAME, facts.to_json())
    card = folder / CARD_NAME
    if not card.is_file() or is_untouched(card.read_text(encoding="utf-8")):
        write_whole(card, render_card(facts).encode())


def add_comparison(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put what a model was compared with into its card.

    Args:
        folder: the model's folder; without recorded facts nothing is done.
        rows: of `comparison.json`, with the same data and labels.
    """
    recorded = read_json(folder / FACTS_NAME)
    if recorded is not None:
        compared = [
            {
                "label": str(row["label"]),
                "seeds": str(len(row["seeds"])),
                "error_rate": format_mean(row["summary"]["last"]["error_rate"], 100),
                "nll": format_mean(row["summary"]["last"]["nll"], digits=3),
                "ece": format_mean(row["summary"]["last"]["ece"], 100),
            }
            for row in rows
        ]
        write_image_card(folder, replace(CardFacts.from_json(recorded), compared=compared))


def show_figures(folder: Path) -> None:
    """Put figures that were drawn after training into the card of a model.

    Args:
        folder: the model's folder; without recorded facts nothing is done.
    """
    recorded = read_json(folder / FACTS_NAME)
    if recorded is not None:
        write_image_card(folder, replace(CardFacts.from_json(recorded), figures=figures_in(folder)))

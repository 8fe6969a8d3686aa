"""How the templates of cards are filled in."""

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

LABELS = {"accuracy": "accuracy", "error_rate": "error rate", "nll": "negative log-likelihood (NLL)"}
LABELS["ece"] = "expected calibration error (ECE)"
_IN_PERCENT = ("accuracy", "error_rate", "ece")


def template(name: str) -> Any:
    """Return a template of the package."""
    environment = Environment(
        loader=PackageLoader("hf_amp.hub", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown, not HTML
    )
    environment.filters.update(
        cell=_cell, literal=_literal, measured=_measured, label=lambda name: LABELS.get(name, name)
    )
    return environment.get_template(name)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _literal(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return f"`{_cell(text)}`" if text else "empty"


def _measured(name: str, value: float) -> str:
    if name in _IN_PERCENT:
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if isinstance(value, float) else str(value)

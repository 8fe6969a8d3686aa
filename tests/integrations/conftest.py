"""Tests with the libraries of the extra `integrations`; where they are not installed, nothing here is collected.

pip install torch -e ".[test,integrations]" && python -m pytest tests/integrations
"""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import pytest

LIBRARIES = ("trl", "sentence_transformers", "peft")
missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []


def pytest_collection_modifyitems(items):
    """The warnings of these libraries are theirs."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.filterwarnings("default"))

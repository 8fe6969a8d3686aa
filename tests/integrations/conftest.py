"""Tests with the libraries of the extra `integrations`; where they are not installed, nothing here is collected.

pip install torch==2.13.0 -e ".[test,integrations]" && python -m pytest tests/integrations
"""

import importlib.util
import os
from pathlib import Path

import huggingface_hub.constants
import pytest

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it warns when it is imported, and warnings are errors

LIBRARIES = ("trl", "sentence_transformers", "peft", "setfit")
missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []


@pytest.fixture(scope="module", autouse=True)
def _no_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def pytest_collection_modifyitems(items):
    """The warnings of these libraries are theirs."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.filterwarnings("default"))

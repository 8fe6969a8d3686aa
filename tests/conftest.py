import os

# One thread a process, here and in the processes that tests start: the runs go side by side, and tiny models gain
# nothing from more. It must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _log_records_reach_pytest():
    """transformers' logger does not propagate by default, and `caplog` listens at the root."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()

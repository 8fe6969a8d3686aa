import atexit
import os
import shutil
import tempfile

# One thread a process, here and in the processes that tests start: the runs go side by side, and tiny models gain
# nothing from more. It must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Code of saved models is copied there and imported by the name of its folder: it must be that of this run.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

import pytest  # noqa: E402 - transformers reads the environment when it is imported
from transformers.utils import logging  # noqa: E402


@pytest.fixture(autouse=True)
def _log_records_reach_pytest():
    """transformers' logger does not propagate by default, and `caplog` listens at the root."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()

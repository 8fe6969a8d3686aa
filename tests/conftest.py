import atexit
import gc
import os
import shutil
import tempfile
from collections import Counter

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


def pytest_collection_modifyitems(items):
    """The files with the slowest tests first, so that no process is left alone with one of them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish(session):
    """Every training ends with a search for garbage, which takes longer among all modules than the training itself."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file in one process, because they share launches and trainings."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # keep the order from above
    return LoadFileScheduling(config, log)

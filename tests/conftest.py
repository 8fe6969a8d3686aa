import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True)
def _log_records_reach_pytest():
    """transformers' logger does not propagate by default, and `caplog` listens at the root."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()

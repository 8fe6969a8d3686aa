"""The fixture; a test file takes it with `pytest_plugins = ["hub_server.fixture"]`."""

import pytest

from hub_server.server import HubServer


@pytest.fixture
def hub():
    """Run a stand-in of the Hub for one test; the test fails if a call met an error of the stand-in."""
    server = HubServer().start()
    yield server
    server.stop()
    assert not server.errors, server.errors

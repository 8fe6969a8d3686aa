"""A local stand-in of the Hub: enough of its protocol for the real clients to push and to load.

`HubServer` listens on two ports of the loopback device, one for the hub and one for its object storage. It keeps
repositories in memory, logs every call, and fails where a test asks for it. The fixture `hub` runs one.
"""

from hub_server.clients import client_environment, run_client
from hub_server.server import READ_TOKEN, WRITE_TOKEN, HubServer

__all__ = ["READ_TOKEN", "WRITE_TOKEN", "HubServer", "client_environment", "run_client"]

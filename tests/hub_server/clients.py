"""Processes with the real clients, which see the stand-in as the Hub."""

import os
import subprocess
import sys

from hub_server.server import WRITE_TOKEN


def client_environment(hub, home, token=WRITE_TOKEN):
    """Return the environment of a client whose Hub is the stand-in.

    Args:
        hub: The stand-in.
        home: Folder for the client's caches; a fresh one knows nothing of earlier clients.
        token: Token of the user, None for nobody.
    """
    outside = ("HF_", "HUGGING_FACE_", "HUGGINGFACE_", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(outside)}
    given = {} if token is None else {"HF_TOKEN": token}
    return {
        **kept,
        **given,
        **{"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"},
        **{
            "HF_HUB_DISABLE_XET": "0" if hub.xet_folder else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        },
        "DISABLE_SAFETENSORS_CONVERSION": "1",
    }


def run_client(hub, home, script, *arguments, token=WRITE_TOKEN):
    """Run Python code as a client in a folder of its own and return the finished process, whatever came of it.

    Args:
        hub: The stand-in.
        home: Folder for the client's caches; it is made where there is none, and is where the code runs.
        script: Python code.
        arguments: Its command-line arguments.
        token: Token of the user, None for nobody.
    """
    home.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=client_environment(hub, home, token),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
    )

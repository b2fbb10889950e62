"""The scripts, as far as they are bash."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


def test_a_stop_ends_the_installation_too(tmp_path):
    """It comes to the script alone, while pip waits for an index that does not answer."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==0.0.1\n")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / ".venv"], check=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    with socket.create_server(("127.0.0.1", 0)) as index:
        url = f"http://127.0.0.1:{index.getsockname()[1]}"
        environment = {**mine, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "no_proxy": "*"}
        with subprocess.Popen([tmp_path / "scripts" / "serve.sh"], env=environment) as script:
            index.accept()
            family = psutil.Process(script.pid).children(recursive=True)
            script.terminate()
        left = psutil.wait_procs(family, timeout=10)[1]
        for process in left:
            process.kill()
    assert script.returncode == -signal.SIGTERM
    assert not left

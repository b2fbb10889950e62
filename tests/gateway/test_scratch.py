"""The directory of a server's own, in a place where others may put things too."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving import scratch
from serving.scratch import LOCK, PREFIX, remove_stale, scratch_directory

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def stale(tmp_path):
    """One that a killed server has left, without its lock."""
    folder = tmp_path / "parent" / f"{PREFIX}stale"
    folder.mkdir(parents=True)
    return folder


def test_what_a_link_leads_to_stays_as_it_is(stale, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (stale / LOCK).symlink_to(victim)
    remove_stale(stale.parent)
    assert victim.read_text() == "kept"


def test_a_pipe_is_not_waited_for(stale):
    os.mkfifo(stale / LOCK)
    code = (
        "import sys; from pathlib import Path; from serving.scratch import remove_stale as f; f(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(stale.parent)], cwd=ROOT, timeout=20, check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_stays(stale):
    (stale / LOCK).touch()
    os.chown(stale, 1000, 1000)
    remove_stale(stale.parent)
    assert stale.exists()
    os.chown(stale, 0, 0)
    remove_stale(stale.parent)
    assert not stale.exists()


def test_a_start_beside_another_keeps_its_directory(tmp_path, monkeypatch):
    """The other one looks for stale directories before the first has locked its own."""
    monkeypatch.setenv("TEMP", str(tmp_path))
    real, others = fcntl.flock, []

    def flock(lock, how):
        if how == fcntl.LOCK_EX and not others:
            others.append(how)
            remove_stale(tmp_path)
        real(lock, how)

    monkeypatch.setattr(scratch.fcntl, "flock", flock)
    with scratch_directory() as folder:
        assert others and (folder / LOCK).exists()
    assert not list(tmp_path.iterdir())

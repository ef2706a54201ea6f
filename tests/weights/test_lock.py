"""Blocks of the same lock follow one another, among threads and among processes, and a dead holder holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from maskrcnn.weights import lock
from maskrcnn.weights.lock import one_at_a_time

HOLDER = """
import sys, time
from pathlib import Path
from maskrcnn.weights.lock import one_at_a_time
with one_at_a_time(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_threads_follow_one_another(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside, most, rounds = 0, 0, []

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with one_at_a_time(path, wait=0.001):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1
                rounds.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(rounds)) == (1, 20)
    assert os.listdir(tmp_path) == []


def test_another_process_is_waited_for_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as stream:
        assert stream.readline() == "held\n"
    waits = 0

    def waiting() -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            holder.kill()
            holder.wait()

    with one_at_a_time(path, waiting=waiting, wait=0.01):
        assert holder.returncode is not None
        assert waits >= 3
    assert os.listdir(tmp_path) == []


def test_a_lock_on_a_file_that_was_deleted_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, locked, waits = tmp_path / "lock", lock._locked, []

    def late(stream: IO[bytes]) -> bool:
        if not waits:
            path.unlink()  # by its last holder, after this one opened it
        return locked(stream)

    monkeypatch.setattr(lock, "_locked", late)
    with one_at_a_time(path, waiting=lambda: waits.append(1), wait=0):
        assert path.exists()
    assert waits == [1]


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    try:
        with one_at_a_time(tmp_path / "lock"):
            raise KeyError
    except KeyError:
        pass
    entered = False
    with one_at_a_time(tmp_path / "lock", waiting=lambda: 1 / 0):
        entered = True
    assert entered

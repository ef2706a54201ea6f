"""Ctrl-C and SIGTERM: the step is finished, the state saved, and nothing dies with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from maskrcnn.training.checkpoint import read_saved
from maskrcnn.training.loop import stop_on_signal
from maskrcnn.training.run_log import read_log

RUN = """
import sys, time

sys.path.insert(0, sys.argv[1])
from conftest import FAST, tiny
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.training import loop
from maskrcnn.training.train import train

real = loop.step_once

def slow(loss_model, state, *parts):
    if state.progress.step >= 1:
        time.sleep(float(sys.argv[3]))
    return real(loss_model, state, *parts)

loop.step_once = slow
train_set, val_set = ShapesDataset(6, size=(64, 64), seed=1), ShapesDataset(2, size=(64, 64), seed=2)
changes = {"steps": 10**6, "evaluate_every": 1e6, "workers": 2}
run = train(train_set, val=val_set, out=sys.argv[2], preset=tiny, device="cpu", **FAST | changes)
print("finished", run.finished)
"""


Start = Callable[[float], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a run into tmp_path / run, in a process group of its own, and waits for its first step."""
    processes: list[subprocess.Popen[str]] = []

    def start_one(seconds_per_step: float) -> subprocess.Popen[str]:
        out, environment = tmp_path / "run", os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(out), str(seconds_per_step)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, start_new_session=True, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        processes.append(process)
        deadline = time.monotonic() + 120
        while not any(line["event"] == "train" for line in read_log(out)):
            assert process.poll() is None and time.monotonic() < deadline, "the run did not get going"
            time.sleep(0.05)
        return process

    yield start_one
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="process groups and signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_run_is_saved_and_ends_in_order(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """The whole group gets the signal, workers too, as on a terminal."""
    process = start(0.01)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "finished False\n")
    log = read_log(tmp_path / "run")
    step = log[-1]["step"]
    assert log[-1]["event"] == "end" and not log[-1]["finished"]
    assert read_saved(tmp_path / "run").progress.step == step >= 1
    assert (tmp_path / "run" / "last.safetensors").is_file()
    assert "stopping: this step is finished and saved first" in err
    assert f"stopped at step {step}; --resume goes on from there" in err and "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="process groups and signals of POSIX")
def test_a_second_ctrl_c_ends_at_once(start: Start) -> None:
    process = start(1000)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.3)
    assert process.poll() is None  # still in its slow step
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and "finished" not in out and "KeyboardInterrupt" in err


def test_signals_are_handed_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signal() as asked:
        assert asked == []
        for _ in range(2):  # torchrun repeats a Ctrl-C at once: that is still the first
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert len(asked) == 3
        asked[0] -= 2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert capfd.readouterr().err.count("stopping") == 1


def test_other_threads_cannot_listen() -> None:
    import threading

    seen: list[list[float]] = []

    def listen() -> None:
        with stop_on_signal() as asked:
            seen.append(list(asked))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [[]]

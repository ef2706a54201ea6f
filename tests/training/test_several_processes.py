"""A whole run under torchrun: one folder, written once; how gradients add up is tested elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskrcnn.training.checkpoint import read_saved
from maskrcnn.training.run_log import read_log

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="gloo on POSIX")]

RUN = """
import sys

sys.path.insert(0, sys.argv[1])
from conftest import FAST, tiny
from maskrcnn.data.shapes import ShapesDataset
from maskrcnn.training.train import train

options = {"steps": int(sys.argv[3]), "batch_size": 4, "accumulate": 2, "evaluate_every": 1.0}
run = train(
    ShapesDataset(8, size=(64, 64), seed=1),
    val=ShapesDataset(3, size=(64, 64), seed=2),
    out=sys.argv[2],
    preset=tiny,
    device="cpu",
    resume="resume" in sys.argv,
    **FAST | options,
)
print("finished", run.finished, run.scores is not None, flush=True)
"""


Torchrun = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def torchrun(tmp_path: Path) -> Iterator[Torchrun]:
    """Starts two processes with these arguments; they write to tmp_path / out."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [*launcher, str(script), str(Path(__file__).parent), str(tmp_path / "out"), *arguments]
        pipe, environment = subprocess.PIPE, os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, start_new_session=True, env=environment, stdout=pipe, stderr=pipe, text=True
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.terminate()  # torchrun ends its own, which are in sessions of their own
        process.communicate(timeout=60)


def test_two_processes_write_one_folder(torchrun: Torchrun, tmp_path: Path) -> None:
    process = torchrun("5")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == ["finished True False", "finished True True"]
    log = read_log(tmp_path / "out")
    assert log[0]["processes"] == 2 and log[0]["event"] == "start"
    assert [line["step"] for line in log if line["event"] == "train"] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in log if line["event"] == "validation"] == [2, 4, 5]
    assert sum(line["event"] == "end" for line in log) == 1
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_stopped_run_of_two_goes_on(torchrun: Torchrun, tmp_path: Path) -> None:
    process = torchrun("400")
    deadline = time.monotonic() + 200
    while sum(line["event"] == "train" for line in read_log(tmp_path / "out")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: torchrun and both processes
    out, err = process.communicate(timeout=120)
    assert "stopped at step" in err
    step = read_saved(tmp_path / "out").progress.step
    assert step == read_log(tmp_path / "out")[-1]["step"] < 400
    process = torchrun("400", "resume")
    while read_log(tmp_path / "out")[-1]["step"] < step + 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert read_saved(tmp_path / "out").progress.step >= step + 2


def test_a_place_that_is_taken_stops_both(torchrun: Torchrun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    process = torchrun("2")
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0 and "holds another run" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]

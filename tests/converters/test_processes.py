"""Training in several processes: they are started, heard and ended together, and train as one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from compressed import SHORT, data_for, run_again, weights_of
from edgeexport.converters import _processes
from edgeexport.converters._processes import process_count, run_processes
from test_distill import changed, taught, with_development
from tiny import TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.errors import CheckpointError, StepFailed

MEMBER = """
import os, sys, time
from pathlib import Path
from edgeexport.converters._processes import tell
from edgeexport.errors import CheckpointError
rank, job = int(os.environ["RANK"]), Path(sys.argv[1])
words = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")]
(job.parent / f"process-{rank}").write_text(" ".join([*words, str(os.getpid())]))
print("a library's own words")
"""


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module to be run; a test writes the rest of it."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "member_of_several"


def write(tmp_path: Path, work: str) -> None:
    (tmp_path / "member_of_several.py").write_text(MEMBER + work)


def ran(tmp_path: Path) -> dict[int, list[str]]:
    return {int(path.name.split("-")[1]): path.read_text().split() for path in tmp_path.glob("process-*")}


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"


def test_progress_and_result_are_those_of_the_first(tmp_path: Path, member: str) -> None:
    write(tmp_path, 'tell(fraction=rank + 0.5, message="half")\ntell(result={"rank": rank})')
    told: list[tuple[float | None, str]] = []
    found = run_processes(member, tmp_path / "job", 3, 7, tmp_path / "log.txt", lambda fraction, message: told.append((fraction, message)))
    assert found == {"rank": 0}
    assert told == [(0.5, "half")]
    assert {rank: words[:3] for rank, words in ran(tmp_path).items()} == {rank: ["3", str(rank), "2"] for rank in range(3)}


def test_an_error_is_the_first_one_s(tmp_path: Path, member: str) -> None:
    write(tmp_path, 'time.sleep(1 - rank)\ntell(error=CheckpointError("Bad.", why="so", hint="do").as_dict())\nsys.exit(1)')
    with pytest.raises(CheckpointError, match="Bad") as caught:
        run_processes(member, tmp_path / "job", 2, 2, tmp_path / "log.txt", lambda *_: None)
    assert caught.value.hint == "do"


@pytest.mark.parametrize("dying", [0, 1])
def test_one_that_dies_ends_them_all(tmp_path: Path, member: str, monkeypatch: pytest.MonkeyPatch, dying: int) -> None:
    monkeypatch.setattr(_processes, "GRACE_SECONDS", 0.5)
    write(tmp_path, f'if rank == {dying}: time.sleep(0.5); print("out of luck", file=sys.stderr); sys.exit(3)\ntime.sleep(60)')
    begun = time.monotonic()
    with pytest.raises(StepFailed, match=f"Process {dying + 1} of 2 died") as caught:
        run_processes(member, tmp_path / "job", 2, 2, tmp_path / "log.txt", lambda *_: None)
    assert time.monotonic() - begun < 30
    assert "exit code 3" in (caught.value.why or "") and "out of luck" in (caught.value.why or "")
    assert not any(alive(int(words[3])) for words in ran(tmp_path).values())


def test_they_are_in_the_group_that_a_step_is_killed_by(tmp_path: Path, member: str) -> None:
    write(tmp_path, "time.sleep(60)")
    script = ("import sys; from pathlib import Path; from edgeexport.converters._processes import run_processes\n"
              "run_processes(sys.argv[1], Path(sys.argv[2]), 2, 2, Path(sys.argv[2] + '.log'), print)")
    step = subprocess.Popen([sys.executable, "-c", script, member, str(tmp_path / "job")], start_new_session=True)
    for _ in range(300):
        time.sleep(0.1)
        if len(ran(tmp_path)) == 2 and all(len(words) == 4 for words in ran(tmp_path).values()):
            break
    os.killpg(step.pid, signal.SIGKILL)
    step.wait()
    time.sleep(0.3)
    numbers = [int(words[3]) for words in ran(tmp_path).values()]
    assert len(numbers) == 2 and not any(map(alive, numbers))


@pytest.mark.parametrize(("text", "gpus", "count"), [
    (None, 0, 1), (None, 1, 1), (None, 4, 4), ("num_processes: 1", 0, 1), ("num_processes: 3", 0, 3), ("num_processes: 3", 4, 3),
    ("num_processes: 3", 2, 2), ("mixed_precision: 'no'", 0, 1), ("num_processes: 0", 0, 1)])
def test_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, gpus: int, count: int) -> None:
    from accelerate.commands.config import config_args

    path = tmp_path / "default_config.yaml"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(config_args, "default_config_file", str(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert process_count() == count


@pytest.mark.parametrize("text", ["num_processes: many", "- a list", "{"])
def test_a_configuration_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from accelerate.commands.config import config_args

    (tmp_path / "default_config.yaml").write_text(text)
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "default_config.yaml"))
    with pytest.raises(StepFailed, match="cannot be read") as caught:
        process_count()
    assert "default_config.yaml" in (caught.value.why or "") and "accelerate config" in (caught.value.hint or "")


def test_two_processes_train_as_one(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors have one row of answers for each text, so that the mean of two halves of a batch is that of the batch."""
    case = Case("bert", Task.SENTENCE_SIMILARITY, "mean")
    student = changed(zoo, case)
    inputs = with_development(zoo, case, taught(zoo, zoo.loaded(case), student, data_for(zoo, case, SHORT[::4])), TEXTS[1:200:20])
    step = find_step("distill")(epochs=2, batch=16, learning_rate=1e-3)
    made = {}
    for count in (1, 2):
        monkeypatch.setattr("edgeexport.converters.distill.process_count", lambda count=count: count)
        told: list[str] = []
        made[count] = run_again(step, inputs, tmp_path / f"out-{count}", tmp_path / f"scratch-{count}",
                                report=lambda fraction, message, told=told: told.append(message))
        assert ("starting 2 processes" in told) == (count == 2)
        assert sum(message.startswith("epoch") for message in told) == 12
    one, two, before = (weights_of(view) for view in (made[1], made[2], student))
    moved = torch.cat([(one[name] - before[name]).ravel() for name in one])
    apart = torch.cat([(one[name] - two[name]).ravel() for name in one])
    assert float(moved.norm()) > 0.1
    assert float(apart.norm()) < 0.01 * float(moved.norm())
    facts = [view.spec.facts["training"] for view in made.values()]
    assert [each["steps"] for each in facts] == [12, 12]
    assert [distance for _, distance in facts[1]["history"]] == pytest.approx([distance for _, distance in facts[0]["history"]], rel=1e-3)

"""Tasks run in the order of their needs, wherever it is; a failure costs what needs it, and nothing is left behind."""

import errno
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from regard.data.datasets.scenes import Scenes
from regard.data.source import Source
from regard.errors import InputError, Interrupted, TrainingStopped
from regard.settings import Hardware
from regard.studies import places, tasks
from regard.studies.jobs import run_all
from regard.studies.places import deal, visible_gpus
from regard.studies.tasks import Failure, Hopeless, Task, Where

CPU = Hardware(accelerator="cpu", bar=False)
TWO = Where(jobs=2)
WITH_TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit")


@dataclass(frozen=True)
class Study:
    """As much of one as `run_all` looks at."""

    source: Source
    hardware: Hardware
    out: Path


@pytest.fixture
def study(tmp_path) -> Study:
    return Study(Source("images", "scenes", {"train": Scenes(2, size=32)}), CPU, tmp_path)


def note(study, word: str) -> None:
    with (study.out / "notes").open("a") as file:
        file.write(f"{word}\n")


def notes(study: Study) -> list[str]:
    path = study.out / "notes"
    return path.read_text().splitlines() if path.exists() else []


def well(study, name: str, *words: str) -> str:
    note(study, name)
    return " ".join(["made", *words])


def fails(study, name: str, message: str) -> str:
    note(study, name)
    raise RuntimeError(message)


def fails_by_input(study, name: str) -> str:
    raise InputError("no such fusion [gat]: take gate")


def fills_the_disk(study, name: str) -> str:
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")
    except OSError as error:
        raise RuntimeError("the archive could not be closed") from error


def is_hopeless(study, name: str) -> str:
    raise Hopeless("the first 3 all failed")


def is_interrupted(study, name: str) -> str:
    raise Interrupted("SIGTERM at step 3: saved", signal.SIGTERM)


def dies(study, name: str) -> str:
    note(study, name)
    os._exit(3)


def takes_a_while(study, name: str) -> str:
    note(study, f"{name}-begun")
    time.sleep(1.5)
    note(study, f"{name}-ended")
    return "made"


def meets(study, name: str, other: str) -> str:
    """Comes well only where the other runs at the same time."""
    note(study, name)
    deadline = time.monotonic() + 60
    while other not in notes(study):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return f"met {other}"


def sees(study, name: str) -> str:
    """What is different in a process of its own."""
    import torch

    split = type(study.source.split("train")).__name__
    threads = torch.get_num_threads()
    return f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {threads} {split} {study.hardware.bar}"


def sees_beside(study, name: str, other: str) -> str:
    meets(study, name, other)
    return sees(study, name)


def sleeps(study, name: str) -> str:
    (study.out / f"{name}.pid").write_text(str(os.getpid()))
    try:
        time.sleep(100)
    finally:
        (study.out / f"{name}.cleared").touch()
    return "slept"


def has_ended(pid: Path) -> bool:
    """The process of this number, within seconds; one that nobody has waited for is still listed, as a zombie."""
    for _ in range(150):
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-p", pid.read_text()], capture_output=True, text=True, check=False
        )
        if not listed.stdout.strip() or listed.stdout.strip().startswith("Z"):
            return True
        time.sleep(0.1)
    return False


GRAPH = (
    Task("weights a", "weights", well),
    Task("weights b", "weights", fails, ("no\nluck",)),
    Task("cell a, seed 0", "training", well, ("a", "0"), ("weights a",)),
    Task("cell b", "training", well, (), ("weights a", "weights b")),
    Task("probe", "training", well, (), ("cell b",)),
    Task("alone", "training", fails_by_input),
)
FAILURES = [
    Failure("weights b", "RuntimeError: no luck"),
    Failure("cell b", "not run: weights b failed"),
    Failure("probe", "not run: weights b failed"),  # the cause, and not cell b
    Failure("alone", "no such fusion [gat]: take gate"),
]


def said(capsys) -> list[str]:
    """The lines of tasks, without those of other processes."""
    return re.findall(r"^(?:training|weights ) \d+/\d+  .*$", capsys.readouterr().err, re.MULTILINE)


def test_tasks_follow_their_needs_and_a_failure_costs_what_needs_it_alone(study, capsys) -> None:
    assert run_all(GRAPH, study, Where()) == FAILURES
    assert notes(study) == ["weights a", "weights b", "cell a, seed 0"]
    assert said(capsys) == [
        "weights  1/2  weights a: made",
        "weights  2/2  weights b: RuntimeError: no luck",
        "training 1/4  cell b: not run: weights b failed",
        "training 2/4  probe: not run: weights b failed",
        "training 3/4  cell a, seed 0: made a 0",
        "training 4/4  alone: no such fusion [gat]: take gate",
    ]


def test_of_several_that_may_begin_the_first_does(study) -> None:
    names = ["c", "a", "b"]
    assert run_all([Task(name, "training", well) for name in names], study, Where()) == []
    assert notes(study) == names
    assert run_all([], study, Where()) == run_all([], study, TWO) == []


def test_a_task_before_what_it_needs_and_two_of_one_name_are_refused(study) -> None:
    with pytest.raises(AssertionError, match="comes after"):
        run_all([Task("a", "x", well, needs=("b",)), Task("b", "x", well)], study, Where())
    with pytest.raises(AssertionError, match="one name"):
        run_all([Task("a", "x", well), Task("a", "x", well)], study, Where())
    assert notes(study) == []


def test_a_traceback_is_kept_until_the_task_comes_well(study) -> None:
    name = "lr=0.1, ../x"  # which must not lead out of the folder
    run_all([Task(name, "training", fails, ("first",)), Task("b", "training", fails, ("second",))], study, Where())
    files = sorted((study.out / "failures").iterdir())
    assert [path.name for path in files] == ["b.txt", "lr=0.1, ..%2Fx.txt"]
    assert "Traceback" in files[1].read_text()
    assert files[1].read_text().endswith("RuntimeError: first\n")
    run_all([Task(name, "training", well)], study, Where())
    assert list((study.out / "failures").iterdir()) == files[:1]
    run_all([Task("b", "training", well)], study, Where())
    assert not (study.out / "failures").exists()


def test_an_error_is_one_line_with_its_type_where_it_is_none_of_ours() -> None:
    assert tasks.one_line(ValueError("shapes:\n  (1,)\n  (2,)")) == "ValueError: shapes: (1,) (2,)"
    assert tasks.one_line(ValueError()) == "ValueError"
    assert tasks.one_line(TrainingStopped("the loss is not finite")) == "the loss is not finite"
    from_a_loader = "Caught InputError in DataLoader worker process 0.\nTraceback (most recent call last):\n  File x\n"
    assert tasks.one_line(InputError(from_a_loader + "regard.errors.InputError: 7.png is cut")) == "7.png is cut"
    assert tasks.one_line(RuntimeError(from_a_loader + "OSError: 7.png is cut")) == "OSError: 7.png is cut"
    assert len(tasks.one_line(RuntimeError("long " * 1000))) <= 400


@pytest.mark.parametrize(
    ("where", "function", "error"),
    [
        (Where(), fills_the_disk, OSError),
        (Where(), is_interrupted, Interrupted),
        (Where(), is_hopeless, Hopeless),
        pytest.param(TWO, fills_the_disk, OSError, marks=pytest.mark.slow),
    ],
    ids=["a full disk", "a signal", "no hope", "a full disk, in processes"],
)
def test_what_stops_all_stops_all(study, where, function, error) -> None:
    beside = Task("second", "training", takes_a_while), Task("third", "training", well, needs=("second",))
    with pytest.raises(error) as raised:
        run_all([Task("first", "training", function), *beside], study, where)
    if error is OSError:
        assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "model.safetensors")
    if error is Interrupted:
        assert raised.value.signum == signal.SIGTERM
    assert "third" not in notes(study)
    assert not (study.out / "failures").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_full_disk_is_told_from_other_errors() -> None:
    def after(first: BaseException, then: Exception) -> Exception:
        then.__context__ = first
        return then

    full = OSError(errno.EDQUOT, "Disk quota exceeded")
    assert tasks.full_disk(after(after(full, ValueError("a")), RuntimeError("b"))) is full
    for words in (
        "I/O error: No space left on device (os error 28)",
        "(sqlite3.OperationalError) database or disk is full",
    ):
        assert tasks.full_disk(RuntimeError(words)).errno == errno.ENOSPC
    assert tasks.full_disk(OSError(errno.ENOENT, "no such file")) is None
    circle = ValueError("a")
    circle.__context__ = after(circle, KeyError("b"))
    assert tasks.full_disk(circle) is None


def test_ctrl_c_in_this_process_goes_through(study) -> None:
    def interrupted(study, name: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all([Task("a", "training", interrupted), Task("b", "training", well)], study, Where())
    assert notes(study) == []


def test_processes_side_by_side_give_what_one_after_the_other_gives(study, capsys) -> None:
    pair = [Task("p", "training", meets, ("q",)), Task("q", "training", meets, ("p",))]
    assert run_all([*pair, Task("sees", "training", sees), *GRAPH], study, TWO) == FAILURES
    assert sorted(notes(study)) == sorted(["p", "q", "weights a", "cell a, seed 0", "weights b"])
    came = {line.partition("  ")[2] for line in said(capsys) if line.startswith("training")}
    threads = max(1, (os.cpu_count() or 1) // 2)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    assert came >= {"p: met q", "q: met p", "cell a, seed 0: made a 0", f"sees: {gpu} {threads} Cached False"}


@pytest.mark.slow
def test_a_process_that_dies_costs_its_task_alone(study) -> None:
    three = [Task("dies", "training", dies), Task("beside", "training", takes_a_while), Task("later", "training", well)]
    failures = run_all([*three, Task("after", "training", well, needs=("dies",))], study, TWO)
    died = "its process died, as where memory runs out (fewer --jobs need less)"
    assert failures == [Failure("dies", died), Failure("after", "not run: dies failed")]
    assert sorted(notes(study)) == ["beside-begun", "beside-ended", "dies", "later"]
    assert (study.out / "failures" / "dies.txt").read_text() == f"{died}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Interrupted: SIGTERM"), (signal.SIGKILL, "")],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_a_signal_to_the_parent_leaves_no_orphans(number, ended, tmp_path) -> None:
    script = """from regard.studies import places
places.GRACE = 5
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from test_jobs import *
    study = Study(Source("images", "scenes", {"train": Scenes(2, size=32)}), CPU, Path(sys.argv[1]))
    run_all([Task(name, "training", sleeps) for name in "ab"], study, TWO)
"""
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": WITH_TESTS, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not all((tmp_path / f"{name}.pid").exists() for name in "ab"):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
    assert ended in errors
    for name in "ab":
        assert has_ended(tmp_path / f"{name}.pid")
        assert (tmp_path / f"{name}.cleared").exists()


def test_gpus_are_dealt_out_in_turn() -> None:
    assert deal(5, 2, ["0", "1", "2"]) == ["0", "1", "0", "1", "0"]
    assert deal(3, 1, ["4", "5"]) == [None] * 3
    assert deal(2, 1, []) == [None] * 2
    with pytest.raises(InputError, match="3 devices, and 2 GPUs to be seen here: take --devices 2"):
        deal(3, 3, ["0", "1"])


def test_devices_that_are_not_there_are_refused_before_anything_runs(study) -> None:
    with pytest.raises(InputError, match="4 devices, and 0 GPUs to be seen here: take --devices 1"):
        run_all([Task("a", "training", well)], study, Where(devices=4))
    assert notes(study) == []


def test_gpus_are_those_that_the_parent_may_use(monkeypatch) -> None:
    monkeypatch.setattr(places.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(places.torch.cuda, "device_count", lambda: 2)
    gpu = Hardware(accelerator="gpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(gpu) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-5ebe9f43,-1,7")  # CUDA stops at the first that is not there
    assert visible_gpus(gpu) == ["3", "GPU-5ebe9f43"]
    assert visible_gpus(CPU) == []


@pytest.mark.slow
def test_each_process_sees_its_own_gpu(study, monkeypatch, capsys) -> None:
    """Of a machine that has none: what is set in its environment."""
    monkeypatch.setattr("regard.studies.jobs.visible_gpus", lambda hardware: ["5", "7"])
    run_all(
        [Task("a", "training", sees_beside, ("b",)), Task("b", "training", sees_beside, ("a",))],
        study,
        Where(devices=2),
    )
    assert sorted(line.split(": ")[1].split()[0] for line in said(capsys)) == ["5", "7"]


@pytest.fixture
def importable(monkeypatch) -> None:
    """A job imports this file by itself."""
    monkeypatch.setenv("PYTHONPATH", WITH_TESTS)


@pytest.mark.slow
@needs_submitit
def test_submitits_jobs_give_what_one_after_the_other_gives(study, importable, capsys) -> None:
    assert run_all(GRAPH, study, Where(jobs=2, cluster="local", cluster_options={"timeout_min": 3})) == FAILURES
    assert sorted(notes(study)) == sorted(["weights a", "cell a, seed 0", "weights b"])
    assert "cell a, seed 0: made a 0" in capsys.readouterr().err
    assert "RuntimeError: no\nluck" in (study.out / "failures" / "weights b.txt").read_text()
    assert list((study.out / "jobs").glob("*_log.out"))


@pytest.mark.slow
@needs_submitit
def test_a_job_that_is_lost_is_a_failure_and_says_where_its_log_is(study, importable, monkeypatch) -> None:
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 0)  # of waiting for a slow disk
    failures = run_all([Task("dies", "training", dies), Task("b", "training", well)], study, Where(cluster="local"))
    assert [failure.name for failure in failures] == ["dies"]
    log = Path(failures[0].error.rpartition("see ")[2])
    assert failures[0].error.startswith("its job ")
    assert log.is_file()
    assert log.parent == study.out / "jobs"
    assert notes(study) == ["dies", "b"]


@pytest.mark.slow
@needs_submitit
def test_a_full_disk_stops_submitits_jobs_and_cancels_those_that_run(study, importable) -> None:
    with pytest.raises(OSError, match="No space left"):
        run_all(
            [Task("a", "training", sleeps), Task("b", "training", fills_the_disk)], study, Where(2, cluster="local")
        )
    pid = study.out / "a.pid"
    assert not pid.exists() or has_ended(pid)  # it may not have got that far


@needs_submitit
def test_options_that_a_cluster_does_not_know_are_refused(study, monkeypatch) -> None:
    tasks = [Task("a", "training", well)]
    with pytest.raises(InputError, match=r"cluster options: .*'timeout_mins'.* parameters are: .*'timeout_min'"):
        run_all(tasks, study, Where(cluster="local", cluster_options={"timeout_mins": 3}))
    with pytest.raises(InputError, match=r"cluster options: .*timeout_min.*an hour"):
        run_all(tasks, study, Where(cluster="local", cluster_options={"timeout_min": "an hour"}))
    monkeypatch.setenv("PATH", str(study.out))
    with pytest.raises(InputError, match="no SLURM here"):
        run_all(tasks, study, Where(cluster="slurm"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'regard\[cluster\]'"):
        run_all(tasks, study, Where(cluster="local"))
    assert notes(study) == []

"""Backends that hang, exit, crash, print, fork or lie: each is a failure of its own, and the rest of a certification goes on."""

from __future__ import annotations

import importlib
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from processes import alive, all_gone

from refpeft.errors import CapabilityError
from refpeft_conformance.counterexample import Counterexample
from refpeft_conformance.verdict import FAIL, PASS
from refpeft_conformance.worker import timed
from refpeft_conformance.workers import Lost, Task, Workers

CHECK = ("nf4.offset", "float32", "nf4.offset-fp32-rounded-outputs_within_budget_on_random_inputs")


@pytest.fixture(scope="module")
def misbehaving(tmp_path_factory):
    """The module of a backend that does what it is told, installed for this process and its workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "site")
        patch.setenv("MISDEED_PIDS", str(tmp_path_factory.mktemp("note") / "pids"))
        yield importlib.import_module("misbehaving")


@pytest.fixture(scope="module")
def workers(misbehaving):
    """A worker for all tests of this module, replaced where a backend takes it down; in the end no process is left.

    One that does not end by itself is killed after one second instead of three.
    """
    with pytest.MonkeyPatch.context() as patch, Workers() as workers:
        patch.setattr("refpeft_conformance.workers.GRACE", 1.0)
        yield workers
    assert all_gone(Path(os.environ["MISDEED_PIDS"]))


@pytest.fixture
def verdict_of(workers, misbehaving):
    """What comes of a check on a backend that does this."""
    return lambda misdeed, seconds=60.0: workers.one(misbehaving.examine, misdeed, *CHECK, seconds=seconds)


HANGS = {
    "sleeps": "time.sleep(600)",
    "loops": "forever()",
    "catches everything": "\nwhile True:\n    try: forever()\n    except BaseException: pass",
    "ignores the signal": "signal.signal(signal.SIGTERM, refuse); forever()",
    "hangs in C": "ctypes.CDLL(None).sleep(600)",
    "hangs in C and keeps the interpreter": "ctypes.PyDLL(None).sleep(600)",
    "reads the terminal for ever": "\nwhile True: sys.stdin.read()",
    "waits for a thread": "t = threading.Thread(target=forever); t.start(); t.join()",
    "hangs on the third call only": "\nif calls == 3: forever()",
}


@pytest.mark.parametrize("hang", HANGS)
def test_a_backend_that_hangs_is_ended(verdict_of, hang):
    """Whatever it hangs in: what it had in hand is known, and the next check passes in another worker."""
    lost = verdict_of(HANGS[hang], seconds=1.0)
    assert isinstance(lost, Lost)
    assert lost.why == "did not return within 1 seconds"
    assert lost.examples == (3 if "third" in hang else 1)
    assert lost.problem.operation.name == "nf4.offset"
    assert verdict_of("").verdict == PASS


ENDS = {
    "exits": ("os._exit(0)", "ended the process that ran the check, with status 0"),
    "exits with a status": ("os._exit(3)", "ended the process that ran the check, with status 3"),
    "crashes": ("ctypes.string_at(0)", "ended the process that ran the check, with signal SIGSEGV"),
    "is killed": ("os.kill(os.getpid(), 9)", "ended the process that ran the check, with signal SIGKILL"),
    "exits from a thread": ("threading.Thread(target=os._exit, args=(0,)).start(); forever()", "with status 0"),
    "closes every file": ("os.closerange(0, 1000)", "ended the process|closed the pipe"),
    "interrupts": ("raise KeyboardInterrupt", "raised KeyboardInterrupt$"),
    "stops a generator": ("raise GeneratorExit", "raised GeneratorExit$"),
    "is cancelled": ("raise asyncio.CancelledError('late')", "raised CancelledError: late"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_backend_that_ends_its_process_is_found_out(verdict_of, end):
    """No exit status passes for a verdict, the problem that did it is known, and the next check passes."""
    misdeed, why = ENDS[end]
    lost = verdict_of(misdeed)
    assert isinstance(lost, Lost)
    assert re.search(why, lost.why), lost.why
    assert lost.problem.operation.name == "nf4.offset"
    assert verdict_of("").verdict == PASS


FAILS = {
    "exits politely": ("sys.exit(0)", "the backend raised SystemExit: 0"),
    "raises what cannot be said": ("raise Unspeakable", "the backend raised Unspeakable"),
    "recurses for ever": ("f = lambda: f(); globals().update(f=f); f()", "the backend raised RecursionError"),
    "lies about its shape": ("y = np.zeros((2, 3), 'f4').view(Lying)", r"offset is float32\[2, 3\] but must be"),
    "returns a pair that is none": ("answer = Pair(((y,), None))", "forward must return|raised ValueError"),
    "returns outputs without items": ("answer = Pair((y,)), None", "returned 0 outputs, where 1 are due"),
    "returns an object array": ("y = np.array(y, object)", r"offset is object\[\] but must be float32"),
    "rounds upward": (
        "ctypes.CDLL('libm.so.6').fesetround(0x800)",
        "left the process in a state in which results are not rounded to nearest",
    ),
}


@pytest.mark.parametrize("misdeed", FAILS)
def test_what_a_backend_does_wrong_is_its_failure(workers, verdict_of, misdeed):
    """An exit, an odd exception, an object that lies and a changed floating-point unit are FAIL, in a sentence."""
    verdict = verdict_of(FAILS[misdeed][0])
    assert verdict.verdict == FAIL, verdict
    assert re.search(FAILS[misdeed][1], verdict.message), verdict.message
    if "left the process" in verdict.message:
        workers.close()


HARMLESS = {
    "prints": "print('Loading kernels ...'); os.write(1, b'from C')",
    "floods": "os.write(1, b'=' * 65536); print('=' * 65536)",
    "leaves threads": "threading.Thread(target=forever).start()",
    "leaves processes": "\nif not os.fork(): forever()",
    "returns twice from a fork": "os.fork()",
    "makes NumPy raise": "np.seterr(all='raise')",
    "makes warnings errors": "warnings.simplefilter('error')",
    "seeds the generators": "np.random.seed(0); __import__('random').seed(0)",
    "changes the folder": "os.chdir('/')",
    "is slow at first": "\nif calls == 1: time.sleep(1.5)",
}


@pytest.mark.parametrize("habit", HARMLESS)
def test_what_does_not_touch_the_numbers_is_no_failure(verdict_of, capfd, habit):
    """Output, threads, children and global settings change no verdict, and nothing reaches standard output."""
    verdict = verdict_of(HARMLESS[habit])
    assert verdict.verdict == PASS, verdict
    assert capfd.readouterr().out == ""


def test_a_library_that_flushes_subnormals_when_loaded_is_found_out(misbehaving, monkeypatch):
    """Fast mathematics that nobody asked for changes the golden values too, so it is not left to them to notice."""
    pytest.importorskip("torch")
    monkeypatch.setenv("MISDEED_AT_START", "import torch; torch.set_flush_denormal(True)")
    with Workers() as workers:
        verdict = workers.one(misbehaving.examine, "", *CHECK)
    assert verdict.verdict == FAIL
    assert "subnormal numbers are taken as zero" in verdict.message


# The workers themselves.


def double(number):
    """Twice a number."""
    return 2 * number


def end(status):
    """End the process."""
    os._exit(status)


def refuse(message):
    """Raise what a caller must see."""
    raise CapabilityError(message)


def unpicklable():
    """What cannot be sent."""
    return lambda: None


def sleep(seconds):
    """Return later; only that is timed."""
    with timed():
        time.sleep(seconds)
    return seconds


def test_a_task_that_ends_its_process_is_told_from_the_others():
    """Every other task has its result, whichever worker it was meant for."""
    tasks = [Task(i, double, (i,)) for i in range(6)]
    with Workers(2) as workers:
        results = dict(workers.run([*tasks[:3], Task("end", end, (5,)), *tasks[3:]]))
    assert isinstance(lost := results.pop("end"), Lost)
    assert lost == Lost("ended the process that ran the check, with status 5", 0, None)
    assert results == {i: 2 * i for i in range(6)}


def test_only_the_task_that_takes_too_long_is_lost():
    """Tasks without a limit, or within it, go on beside it."""
    tasks = [Task("slow", sleep, (600,), 1.0), Task("unlimited", sleep, (1.5,)), Task("quick", sleep, (0.1,), 30.0)]
    with Workers(2) as workers:
        results = dict(workers.run(tasks))
    assert results.pop("slow") == Lost("did not return within 1 seconds", 0, None)
    assert results == {"unlimited": 1.5, "quick": 0.1}


def leave_threads(count):
    """Leave threads behind, and say in which process."""
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return os.getpid()


def test_a_worker_full_of_threads_is_replaced():
    """What each call leaves behind does not add up over a certification."""
    with Workers() as workers:
        first, second, third = (workers.one(leave_threads, count) for count in (10, 150, 0))
    assert first == second != third


def test_what_a_task_raises_comes_back():
    """A bad input found in a worker is the caller's, as it is."""
    with Workers() as workers, pytest.raises(CapabilityError, match="no such device"):
        workers.one(refuse, "no such device")


def test_a_result_that_cannot_be_sent_is_a_loss():
    """Not a hang, and not a crash of the parent."""
    with Workers() as workers:
        assert "gave what cannot be sent to another process" in workers.one(unpicklable).why
        assert workers.one(double, 2) == 4


def test_a_worker_that_cannot_start_is_no_backend_failure(monkeypatch):
    """Nothing can be said of a backend then, and the sentence says why."""
    monkeypatch.setattr("refpeft_conformance.workers.work", end)
    with Workers() as workers, pytest.raises(CapabilityError, match="a worker process could not be started"):
        workers.one(double, 1)


def test_workers_end_with_the_block_whatever_they_do():
    """An exception in the block leaves none."""
    with pytest.raises(ZeroDivisionError), Workers(2) as workers:
        run = workers.run([Task("here", double, (1,)), Task("busy", sleep, (600,))])
        assert next(run) == ("here", 2)
        pids = [w.process.pid for w in workers._workers]
        raise ZeroDivisionError
    assert len(pids) == 2
    assert not any(map(alive, pids))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_problem_in_flight_is_a_counterexample(verdict_of, tmp_path):
    """What a backend hung on can be saved, and loads again."""
    lost = verdict_of("time.sleep(600)", seconds=1.0)
    path = Counterexample(CHECK[2], "misbehaving", "", f"the backend {lost.why}", False, lost.problem, {}).save(
        tmp_path
    )
    loaded = Counterexample.load(path)
    assert loaded.problem.inputs["absmax"].tobytes() == lost.problem.inputs["absmax"].tobytes()
    assert not loaded.minimal

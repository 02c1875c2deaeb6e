"""Runs of a paged optimizer that are killed by SIGKILL, and what is left of them; a program of its own, because it forks.

    python killed.py lines FOLDER 1      killed before every line that the third step runs, or every so many, in one run each
    python killed.py chain FOLDER 40     one run of so many steps, killed at random instants until it is done

It prints how many kills there were, and stops with an error where a resumed run is not what the unpaged one was at that step.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

import numpy as np

from refpeft.plugins import backend
from refpeft.training import PagedAdamW

NUMBERS = {"lr": 0.01, "decay": 0.1}


def start(shapes):
    """Parameters at the start of a run."""
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradients(parameters, step):
    """What a loss would say: they depend on the parameters, so that nothing lost goes unseen."""
    random = np.random.default_rng(step)
    return {name: p + random.normal(size=p.shape).astype(np.float32) for name, p in parameters.items()}


def unpaged(shapes, steps):
    """The parameters after each step, each one whole."""
    parameters = start(shapes)
    zeros = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in parameters.items()}
    forward, history = backend("reference").implementation("adamw.step").forward, [parameters]
    for step in range(1, steps + 1):
        grads, after = gradients(history[-1], step), {}
        for name, p in history[-1].items():
            (after[name], *zeros[name]), _ = forward(p, grads[name], *zeros[name], step=step, **NUMBERS)
        history.append(after)
    return history


def paged(shapes, folder, **sizes):
    """The run in ``folder``, where it is."""
    parameters = start(shapes)
    return parameters, PagedAdamW(parameters, folder=folder, **sizes, **NUMBERS)


def go_on(parameters, optimizer, steps, tell=None):
    """Step up to ``steps``, telling each complete one."""
    for step in range(optimizer.steps + 1, steps + 1):
        optimizer.step(gradients(parameters, step))
        if tell is not None:
            os.write(tell, bytes([step]))


def same(parameters, truth, when):
    """Bit for bit, or an error."""
    for name, p in parameters.items():
        assert p.tobytes() == truth[name].tobytes(), f"{name} is not that of the unpaged run {when}"


def forked(work):
    """A child that does ``work(tell)`` and ends; (its id, where it tells)."""
    heard, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(heard)
        work(tell)
        os._exit(0)
    os.close(tell)
    return child, heard


def told(heard):
    """The last step that a child, now dead, said was complete."""
    with os.fdopen(heard, "rb") as pipe:
        return max(pipe.read(), default=0)


def killing(line):
    """A trace that kills this process before it runs the line of that number in the store, the table or the files."""
    ours, left = ("/refpeft/training/", "refpeft/files.py"), [line]

    def trace(frame, event, argument):
        if not any(part in frame.f_code.co_filename for part in ours):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def lines(folder, stride):
    """Killed before one in ``stride`` lines of the third of four steps, until a run gets through it."""
    shapes, sizes = {"a": (5, 4), "b": (3,)}, {"budget": 128, "page_size": 64}
    truth = unpaged(shapes, 4)
    for kills, number in enumerate(range(int.from_bytes(os.urandom(2)) % stride, 100_000, stride)):
        place = Path(folder) / str(number)

        def work(tell, place=place, number=number):
            parameters, optimizer = paged(shapes, place, **sizes)
            go_on(parameters, optimizer, 2, tell)
            sys.settrace(killing(number))
            go_on(parameters, optimizer, 3, tell)

        child, heard = forked(work)
        alive = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        complete = told(heard)
        parameters, optimizer = paged(shapes, place, **sizes)
        assert complete <= optimizer.steps <= 3, f"resumed at step {optimizer.steps} after step {complete} was complete"
        same(parameters, truth[optimizer.steps], f"after step {optimizer.steps}, killed at line {number}")
        go_on(parameters, optimizer, 4)
        same(parameters, truth[4], f"at the end, killed at line {number}")
        if alive:
            return kills
    raise AssertionError("the step never ended")


def chain(folder, steps):
    """One run that is killed again and again: in every other life soon after it began, else soon after its first step."""
    shapes, sizes = {"a": (150, 128), "b": (4099,)}, {"budget": 3 * 2**13, "page_size": 2**13}
    truth, random, kills, complete, done = unpaged(shapes, steps), np.random.default_rng(), 0, 0, False
    while not done:

        def work(tell, complete=complete):
            parameters, optimizer = paged(shapes, folder, **sizes)
            assert optimizer.steps >= complete, f"resumed at step {optimizer.steps} after step {complete} was complete"
            same(parameters, truth[optimizer.steps], f"when resumed at step {optimizer.steps}")
            go_on(parameters, optimizer, steps, tell)

        child, heard = forked(work)
        if kills % 2:
            select.select([heard], [], [])
        time.sleep(random.uniform(0, 0.01 + 0.002 * kills))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"the run failed with status {code}"
        done, kills = code == 0, kills + (code != 0)
        complete = max(complete, told(heard))
    parameters, optimizer = paged(shapes, folder, **sizes)
    assert optimizer.steps == steps
    same(parameters, truth[steps], "at the end")
    return kills


if __name__ == "__main__":
    print({"lines": lines, "chain": chain}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))

"""Laws of prompts: those at the input, their encoders, and the gated one in attention."""

from __future__ import annotations

import numpy as np

from refpeft.numerics.formats import as_format
from refpeft.problem import Problem
from refpeft_conformance.laws import equal, law
from refpeft_conformance.laws.attention import both, changed
from refpeft_conformance.verdict import Violation

for _name in ("prompt.embed", "cpt.embed", "multitask_prompt.embed"):

    @law(_name, "the input follows the prompt unchanged")
    def _(subject, problem, observed):
        x = problem.inputs["x"]
        y = subject.run(changed(problem))["y"]
        equal("input", y[..., y.shape[-2] - x.shape[-2] :, :], x, observed)

    @law(_name, "the gradient to the input is its rows' cotangent", gradients=True)
    def _(subject, problem, observed):
        dy, x = problem.cotangents["dy"], problem.inputs["x"]
        equal("dx", subject.run(problem)["dx"], dy[..., dy.shape[-2] - x.shape[-2] :, :], observed)


@law("prompt.embed", "every example has the same prompt in front")
def _(subject, problem, observed):
    prompt = problem.inputs["prompt"]
    y = subject.run(changed(problem))["y"][..., : len(prompt), :]
    equal("prompt", y, np.broadcast_to(prompt, y.shape), observed)


@law("cpt.embed", "a zero delta leaves the context")
def _(subject, problem, observed):
    tokens = problem.inputs["tokens"]
    y = subject.run(changed(problem, delta=np.zeros_like(tokens)))["y"][..., : len(tokens), :]
    equal("context", y, np.broadcast_to(tokens, y.shape), observed)


@law("cpt.project", "no row lies outside its ball")
def _(subject, problem, observed):
    """To within the budget of the row: |projected| <= epsilon + |budget|."""
    (compared,) = subject.compare(problem, subject.run(problem))
    norm, room = (np.linalg.norm(a, axis=-1) for a in (compared.got.astype(np.float64), compared.golden.budget))
    epsilon = problem.inputs["epsilon"].astype(np.float64)
    observed.elements += norm.size
    unit = 4 * as_format("float64").unit
    if np.any(norm > (epsilon + room) * (1 + unit * problem.dims["d"])):
        raise Violation("a projected row is longer than its radius and its budget", {"projected": compared.got})


@law("cpt.project", "a row inside its ball comes back bit for bit")
def _(subject, problem, observed):
    delta = problem.inputs["delta"]
    norm = np.linalg.norm(delta.astype(np.float64), axis=-1)
    inside = norm < 0.9 * problem.inputs["epsilon"].astype(np.float64)
    equal("inside", subject.run(problem)["projected"][inside], delta[inside], observed)


@law("multitask_prompt.embed", "a task that does not occur gets no gradient", gradients=True)
def _(subject, problem, observed):
    absent = np.setdiff1d(np.arange(problem.dims["k"]), problem.inputs["task"])
    results = subject.run(problem)
    for name in ("du", "dv"):
        equal(name, results[name][absent], np.zeros_like(results[name][absent]), observed)


@law("prefix.encode", "each virtual token is encoded by itself", regime="exact")
def _(subject, problem, observed):
    whole = subject.run(changed(problem))["flat"]
    alone = subject.run(changed(problem, embedding=problem.inputs["embedding"][-1:]))["flat"]
    equal("last token", alone, whole[-1:], observed)


@law("prefix.cut", "layer after layer, keys before values, group after group")
def _(subject, problem, observed):
    """Element by element, from the position that the page gives."""
    results, flat = subject.run(changed(problem)), problem.inputs["flat"]
    groups, size = problem.dims["g"], problem.dims["d"]
    for which, name in enumerate(("keys", "values")):
        for layer in range(problem.dims["l"]):
            for group in range(groups):
                start = ((2 * layer + which) * groups + group) * size
                equal(name, results[name][layer, group], flat[:, start : start + size], observed)


@law("ptuning.mlp", "each virtual token is encoded by itself", regime="exact")
def _(subject, problem, observed):
    whole = subject.run(changed(problem))["prompt"]
    alone = subject.run(changed(problem, embedding=problem.inputs["embedding"][-1:]))["prompt"]
    equal("last token", alone, whole[-1:], observed)


@law("ptuning.lstm", "reversed tokens and exchanged directions give the reversed prompt")
def _(subject, problem, observed):
    """What the forward direction does to a sequence, the backward one does to its reverse; halves of features change places."""
    i, h = problem.inputs, problem.dims["h"]
    swap = np.r_[h : 2 * h, 0:h]
    turned = {n: i[n][::-1].copy() for n in ("embedding", "w_1", "u_1", "b_1", "w_2", "u_2", "b_2")}
    turned |= {"w_2": turned["w_2"][..., swap], "w_3": i["w_3"][:, swap]}
    there, back = changed(problem), changed(problem, **turned)
    room = [c.golden.budget for c in _compared(subject, there, back)]
    first, second = (c.got.astype(np.float64) for c in _compared(subject, there, back))
    observed.elements += first.size
    if np.any(np.abs(first - second[::-1]) > room[0] + room[1][::-1]):
        raise Violation("the reversed sequence does not give the reversed prompt", {"prompt": second})


def _compared(subject, *problems):
    return [subject.compare(p, subject.run(p))[0] for p in problems]


@law("adaption_prompt.attention", "a zero gate leaves the base attention")
def _(subject, problem, observed):
    shut = changed(problem, gate=np.zeros_like(problem.inputs["gate"]))
    equal("zero gate", subject.run(shut)["y"], problem.inputs["base"], observed)


@law("adaption_prompt.attention", "at a zero gate only the gate learns", gradients=True)
def _(subject, problem, observed):
    shut = problem.replace(inputs=problem.inputs | {"gate": np.zeros_like(problem.inputs["gate"])})
    results = subject.run(shut)
    for name in ("dprompt", "dq", "dweight_k", "dweight_v"):
        equal(name, results[name], np.zeros_like(results[name]), observed)


@law("adaption_prompt.attention", "behind an open gate stands attention over the prompt", needs=("nn.attention",))
def _(subject, problem, observed):
    """Base zero, gates one, and projections that only pick out: nn.attention with the projected prompt."""
    i, n = problem.inputs, problem.dims["n"]
    zero, one = np.zeros_like(i["base"]), np.ones_like(i["gate"])
    weights = {w: _picks(i[w]) for w in ("weight_k", "weight_v")}
    opened = changed(problem, base=zero, gate=one, **weights)
    k, v = (np.moveaxis(i["prompt"][:, _columns(w)], 0, 1) for w in weights.values())
    arrays = {"q": i["q"]} | {m: np.broadcast_to(a, (*n, *a.shape)).copy() for m, a in (("k", k), ("v", v))}
    attributes = {"scale": problem.dims["d"] ** -0.5}
    both(subject, "open gate", opened, Problem.of("nn.attention", arrays, attributes, {}, problem.dtype), observed)


def _picks(weight):
    """A weight (g, d, c) whose rows have a single 1, at the places that `_columns` gives."""
    picks = np.zeros_like(weight)
    np.put_along_axis(
        picks, np.arange(weight[..., 0].size).reshape(*weight.shape[:-1], 1) % weight.shape[-1], 1, axis=-1
    )
    return picks


def _columns(weight):
    return np.argmax(weight, axis=-1)

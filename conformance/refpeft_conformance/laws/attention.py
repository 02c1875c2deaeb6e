"""Laws of attention, with and without a prefix."""

from __future__ import annotations

import numpy as np

from refpeft.problem import Problem
from refpeft_conformance.laws import agree, equal, law
from refpeft_conformance.strategies import is_exact


def both(subject, claim, first, second, observed, pairs=None) -> None:
    """Two problems have results that agree: y alone where no pairs of names are given."""
    agree(claim, subject, (first, subject.run(first)), (second, subject.run(second)), pairs or {"y": "y"}, observed)


def changed(problem, **arrays):
    """The problem's forward with some inputs replaced, or left out where None."""
    inputs = {n: a for n, a in (problem.inputs | arrays).items() if a is not None}
    return problem.replace(inputs=inputs, cotangents={})


def plain(problem):
    """A problem of prefix.attention as one of nn.attention over the concatenated keys and values."""
    i, p, n = problem.inputs, problem.dims["p"], problem.dims["n"]

    def joined(prefix, own):
        return np.concatenate([np.broadcast_to(prefix, (*n, *prefix.shape)), own], axis=-2)

    arrays = {"q": i["q"], "k": joined(i["prefix_k"], i["k"]), "v": joined(i["prefix_v"], i["v"])}
    if "mask" in i:
        arrays["mask"] = np.concatenate([np.ones((*i["mask"].shape[:-1], p), bool), i["mask"]], axis=-1)
    causal, offset = problem.attributes["causal"], problem.attributes["offset"] + p
    attributes = {"scale": problem.dims["d"] ** -0.5, "causal": causal, "offset": offset}
    return Problem.of("nn.attention", arrays, attributes, problem.cotangents, problem.dtype)


@law("prefix.attention", "a prefix is keys and values in front", gradients=True, needs=("nn.attention",))
def _(subject, problem, observed):
    both(subject, "concatenated", problem, plain(problem), observed, {"y": "y", "dq": "dq"})


@law("prefix.attention", "an empty prefix is plain attention", needs=("nn.attention",))
def _(subject, problem, observed):
    empty = changed(problem, prefix_k=problem.inputs["prefix_k"][:, :0], prefix_v=problem.inputs["prefix_v"][:, :0])
    both(subject, "empty prefix", empty, plain(empty), observed)


@law("prefix.attention", "the order of the virtual tokens does not matter", regime="exact")
def _(subject, problem, observed):
    i = problem.inputs
    turned = changed(problem, prefix_k=i["prefix_k"][:, ::-1].copy(), prefix_v=i["prefix_v"][:, ::-1].copy())
    equal("prefix reversed", subject.run(turned)["y"], subject.run(changed(problem))["y"], observed)


@law("prefix.attention", "a query that sees nothing else sees the prefix")
def _(subject, problem, observed):
    """Without a mask of its own the input's keys could as well not be there: their values do not matter."""
    n, s, t = problem.dims["n"], problem.dims["s"], problem.dims["t"]
    hidden = np.zeros((*n, s, t), bool)
    first = changed(problem, mask=hidden)
    second = changed(problem, mask=hidden, v=np.zeros_like(problem.inputs["v"]))
    both(subject, "only the prefix", first, second, observed)


for _name in ("nn.attention", "prefix.attention"):

    @law(_name, "masked keys have no influence", regime="exact")
    def _(subject, problem, observed):
        """One key that no query may meet takes another value and another key: y is the same, number for number."""
        i, n, s = problem.inputs, problem.dims["n"], problem.dims["s"]
        mask = np.array(i.get("mask", np.ones((*n, s, problem.dims["t"]), bool)))
        mask[..., -1] = False
        k, v = i["k"].copy(), i["v"].copy()
        k[..., -1, :], v[..., -1, :] = k[..., -1, ::-1] + 2, v[..., -1, :] * -2 + 1
        first, second = changed(problem, mask=mask), changed(problem, mask=mask, k=k, v=v)
        equal("masked key", subject.run(second)["y"], subject.run(first)["y"], observed)

    @law(_name, "a mask of ones changes nothing", regime="exact")
    def _(subject, problem, observed):
        n, s, t = problem.dims["n"], problem.dims["s"], problem.dims["t"]
        without, ones = changed(problem, mask=None), changed(problem, mask=np.ones((*n, s, t), bool))
        equal("ones", subject.run(ones)["y"], subject.run(without)["y"], observed)

    @law(_name, "a causal query sees what the mask of its past shows")
    def _(subject, problem, observed):
        s, t, n = problem.dims["s"], problem.dims["t"], problem.dims["n"]
        past = np.broadcast_to(np.tri(s, t, problem.attributes["offset"], bool), (*n, s, t))
        mask = past & problem.inputs.get("mask", True)
        causal = changed(problem).replace(attributes=problem.attributes | {"causal": True})
        masked = changed(problem, mask=mask).replace(attributes=problem.attributes | {"causal": False})
        both(subject, "causal", causal, masked, observed)

    @law(_name, "grouped heads are repeated heads")
    def _(subject, problem, observed):
        """Each head with a copy of its group's keys and values gives the same."""
        repeats = problem.dims["h"] // problem.dims["g"]
        shared = [n for n in ("k", "v", "prefix_k", "prefix_v") if n in problem.inputs]
        repeated = {n: np.repeat(problem.inputs[n], repeats, axis=-3) for n in shared}
        both(subject, "repeated", changed(problem), changed(problem, **repeated), observed)

    @law(_name, "each example of a batch stands alone", regime="exact")
    def _(subject, problem, observed):
        if not problem.dims["n"] or not problem.dims["n"][0]:
            return
        own = [n for n in ("q", "k", "v", "mask") if n in problem.inputs]
        whole = subject.run(changed(problem))["y"]
        alone = subject.run(changed(problem, **{n: problem.inputs[n][-1:] for n in own}))["y"]
        equal("last example alone", alone, whole[-1:], observed)


@law("nn.attention", "a step with a cache is the last row of the whole", regime="exact")
def _(subject, problem, observed):
    """The last query alone, all but its own key cached, gives what it gives among the others."""
    i, size = problem.inputs, min(problem.dims["s"], problem.dims["t"])
    arrays = {n: i[n][..., :size, :] for n in ("q", "k", "v")}
    whole = problem.attributes | {"causal": True, "offset": 0}
    step = whole | {"offset": size - 1}
    first = Problem.of("nn.attention", arrays, whole, {}, problem.dtype)
    second = Problem.of("nn.attention", arrays | {"q": arrays["q"][..., -1:, :]}, step, {}, problem.dtype)
    if is_exact(first, subject.precision(problem.dtype)):
        equal("step", subject.run(second)["y"], subject.run(first)["y"][..., -1:, :], observed)

"""Mistakes with prompts: at the input, in their encoders, and with the gate of LLaMA-Adapter."""

from __future__ import annotations

import numpy as np

from refpeft_conformance.faults import fault, only, wide, with_inputs


@fault("prompt", "prompt behind the input", "x", "[t]", "[p]", operations="*.embed")
def _(problem, run):
    results = run(problem)
    y = results["y"]
    count = y.shape[-2] - problem.dims["t"]
    return results | {"y": np.concatenate([y[..., count:, :], y[..., :count, :]], axis=-2)}


def _of_one_example(gradient: str, **keywords):
    @fault("prompt", f"{gradient} of the first example only", gradient, "[t]", operations="*.embed", **keywords)
    def _(problem, run):
        dy = problem.cotangents.get("dy")
        if dy is None or dy.ndim < 3:
            return run(problem)
        first = np.zeros_like(dy)
        first[:1] = dy[:1]
        return only(gradient, run(problem.replace(cotangents={"dy": first})), run(problem))


for _gradient in ("dprompt", "ddelta"):
    _of_one_example(_gradient)


@fault("prompt", "context left out", "tokens", "delta")
def _(problem, run):
    return run(with_inputs(problem, tokens=np.zeros_like(problem.inputs["tokens"])))


@fault("prompt", "every row brought to its radius", operations="cpt.project")
def _(problem, run):
    """Those inside the ball, too."""
    delta, epsilon = wide(problem.inputs["delta"]), wide(problem.inputs["epsilon"])[:, None]
    norm = np.linalg.norm(delta, axis=-1, keepdims=True)
    return run(problem) | {"projected": np.where(norm > 0, delta * epsilon / np.where(norm > 0, norm, 1.0), delta)}


@fault("prompt", "norm of the whole delta for that of a token", operations="cpt.project")
def _(problem, run):
    delta, epsilon = wide(problem.inputs["delta"]), wide(problem.inputs["epsilon"])[:, None]
    return run(problem) | {"projected": delta * np.minimum(1.0, epsilon / max(np.linalg.norm(delta), 1e-300))}


@fault("prompt", "each element clipped to the radius", operations="cpt.project")
def _(problem, run):
    """A cube for the ball."""
    epsilon = wide(problem.inputs["epsilon"])[:, None]
    return run(problem) | {"projected": np.clip(wide(problem.inputs["delta"]), -epsilon, epsilon)}


@fault("prompt", "factors of the first task for all", "task")
def _(problem, run):
    return run(problem.replace(inputs=problem.inputs | {"task": np.zeros_like(problem.inputs["task"])}))


@fault("prompt", "scale of a task added, not multiplied", "task", "u", "v")
def _(problem, run):
    i, p = problem.inputs, problem.dims["p"]
    results = run(problem)
    y = wide(results["y"])
    y[:, :p] = wide(i["prompt"]) + wide(i["u"])[i["task"]] @ wide(i["v"])[i["task"]]
    return results | {"y": y}


@fault("prompt", "second relu left out", "w3", operations="ptuning.mlp")
def _(problem, run):
    i = {n: wide(a) for n, a in problem.inputs.items()}
    hidden = np.maximum(i["embedding"] @ i["w1"].T + i["b1"], 0) @ i["w2"].T + i["b2"]
    return run(problem) | {"prompt": hidden @ i["w3"].T + i["b3"]}


@fault("prompt", "sigmoid for tanh in the encoder", "embedding", operations="prefix.encode")
def _(problem, run):
    i = {n: wide(a) for n, a in problem.inputs.items()}
    a = i["embedding"] @ i["w1"].T + i["b1"]
    return run(problem) | {"flat": (0.5 + 0.5 * np.tanh(a / 2)) @ i["w2"].T + i["b2"]}


_ROWS = ("w_1", "u_1", "b_1", "w_2", "u_2", "b_2")


@fault("lstm", "gates in the order i, f, o, g", *_ROWS)
def _(problem, run):
    h = problem.dims["h"]
    order = np.r_[0 : 2 * h, 3 * h : 4 * h, 2 * h : 3 * h]
    results = run(problem.replace(inputs=problem.inputs | {n: problem.inputs[n][:, order] for n in _ROWS}))
    return results | {"d" + n: results["d" + n][:, order] for n in _ROWS if "d" + n in results}


@fault("lstm", "one added to the forget gate's bias", "b_1", "b_2")
def _(problem, run):
    h = problem.dims["h"]
    raised = {n: wide(problem.inputs[n]) for n in ("b_1", "b_2")}
    for bias in raised.values():
        bias[:, h : 2 * h] += 1
    return run(with_inputs(problem, **raised))


def _encoded(problem, layer):
    """ptuning.lstm in float64, with ``layer`` (x, w, u, b) -> (p, 2 h) for a bidirectional one."""
    i = {n: wide(a) for n, a in problem.inputs.items()}
    states = layer(layer(i["embedding"], i["w_1"], i["u_1"], i["b_1"]), i["w_2"], i["u_2"], i["b_2"])
    return np.maximum(states @ i["w_3"].T + i["b_3"], 0) @ i["w_4"].T + i["b_4"]


def _direction(x, w, u, b, squash=np.tanh, recurrent=True):
    h, c, states = np.zeros(u.shape[1]), np.zeros(u.shape[1]), []
    for row in x:
        i, f, g, o = np.split(w @ row + (u @ h if recurrent else 0.0) + b, 4)
        i, f, o = (0.5 + 0.5 * np.tanh(a / 2) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * squash(c)
        states.append(h)
    return np.array(states)


@fault("lstm", "backward states not turned back", "u_1", "u_2")
def _(problem, run):
    """Row t holds the backward state of token p - 1 - t."""

    def layer(x, w, u, b):
        return np.hstack([_direction(x, w[0], u[0], b[0]), _direction(x[::-1], w[1], u[1], b[1])])

    return run(problem) | {"prompt": _encoded(problem, layer)}


@fault("lstm", "both directions forward", "u_1", "u_2")
def _(problem, run):
    def layer(x, w, u, b):
        return np.hstack([_direction(x, w[j], u[j], b[j]) for j in range(2)])

    return run(problem) | {"prompt": _encoded(problem, layer)}


@fault("lstm", "no tanh of the cell", "u_1", "u_2")
def _(problem, run):
    def layer(x, w, u, b):
        back = _direction(x[::-1], w[1], u[1], b[1], squash=np.copy)
        return np.hstack([_direction(x, w[0], u[0], b[0], squash=np.copy), back[::-1]])

    return run(problem) | {"prompt": _encoded(problem, layer)}


@fault("lstm", "gradient to the state's weights of the forward direction for both", "du_1", "u_2")
def _(problem, run):
    results = run(problem)
    return results | {n: np.stack([results[n][0]] * 2) for n in ("du_1", "du_2") if n in results}


@fault("gate", "gate before the softmax", "gate", "base")
def _(problem, run):
    gate, q = wide(problem.inputs["gate"])[:, None, None], wide(problem.inputs["q"])
    results = run(with_inputs(problem, q=gate * q, gate=np.ones_like(gate[:, 0, 0])))
    return results | ({"dq": gate * wide(results["dq"])} if "dq" in results else {})


@fault("gate", "tanh of the gate", "gate", "base")
def _(problem, run):
    """As later code of the authors has it."""
    gate = wide(problem.inputs["gate"])
    results = run(with_inputs(problem, gate=np.tanh(gate)))
    return results | ({"dgate": (1 - np.tanh(gate) ** 2) * wide(results["dgate"])} if "dgate" in results else {})


@fault("gate", "gate of the first head for all", "gate", "base")
def _(problem, run):
    gate = problem.inputs["gate"]
    return run(problem.replace(inputs=problem.inputs | {"gate": np.full_like(gate, gate[0])}))


@fault("gate", "base attention weakened as the gate opens", "gate", "base")
def _(problem, run):
    """(1 - gate) base + gate Z, a mixture."""
    gate, base = wide(problem.inputs["gate"])[:, None, None], wide(problem.inputs["base"])
    results = run(problem)
    return results | {"y": wide(results["y"]) - gate * base}

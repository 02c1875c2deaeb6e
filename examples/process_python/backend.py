"""A backend for refpeft in plain Python: nn.linear and lora.linear, forward and vjp, with the standard library alone.

It answers requests of the protocol refpeft/1 (docs/protocol.md) until standard input ends. A matrix is a list of rows
of Python floats, so sums are accumulated in double precision, and each result is rounded once to the dtype that it is
stored in: that is what ``describe`` promises. Tensors are read and written as this machine holds numbers, which the
format wants to be little-endian.
"""

import json
import sys
from array import array
from dataclasses import dataclass
from math import prod

CODES = {"float32": "F32", "float64": "F64"}
TYPES = {"F32": "f", "F64": "d", "BOOL": "B"}

DESCRIPTION = {
    "name": "example-python",
    "version": "1.0",
    "operations": "nn.linear,lora.linear",
    "dtypes": "float32,float64",
    "deterministic": "true",
    "precision.float32.accumulation": "float64",
}


# Messages: a length, a JSON header, the tensors' bytes.


def read_message(stream):
    """The metadata and the tensors, as name: (dtype, shape, bytes), of the next request; None at the end."""
    length = stream.read(8)
    if not length:
        return None
    header = json.loads(stream.read(int.from_bytes(length, "little")))
    metadata = header.pop("__metadata__")
    data = stream.read(max((entry["data_offsets"][1] for entry in header.values()), default=0))
    return metadata, {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }


def write_message(stream, metadata, tensors):
    """Write an answer and flush it."""
    header, start = {"__metadata__": metadata}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(data)]}
        start += len(data)
    encoded = json.dumps(header).encode()
    stream.write(len(encoded).to_bytes(8, "little") + encoded)
    stream.writelines(data for _, _, data in tensors.values())
    stream.flush()


# Matrices.


@dataclass
class Matrix:
    """A matrix as its rows; the width is kept beside them, because a batch may be empty."""

    rows: list
    width: int

    @property
    def T(self):
        return Matrix([[row[j] for row in self.rows] for j in range(self.width)], len(self.rows))

    def __matmul__(self, other):
        columns = other.T.rows
        return Matrix(
            [[sum(p * q for p, q in zip(row, column)) for column in columns] for row in self.rows], other.width
        )

    def __add__(self, other):
        """The sum; an ``other`` of one row is added to every row."""
        others = other.rows * len(self.rows) if len(other.rows) == 1 else other.rows
        return Matrix([[p + q for p, q in zip(*pair)] for pair in zip(self.rows, others)], self.width)

    def __rmul__(self, factor):
        return Matrix([[factor * p for p in row] for row in self.rows], self.width)

    def sum_of_rows(self):
        return Matrix([[sum(column) for column in self.T.rows]], self.width)

    def dropout(self, mask, keep):
        """Inverted dropout; the matrix itself where there is no mask."""
        if mask is None:
            return self
        pairs = zip(self.rows, mask.rows)
        return Matrix([[p / keep if kept else 0.0 for p, kept in zip(row, keeps)] for row, keeps in pairs], self.width)


def matrix(tensor):
    """A tensor x[*n,i] as prod(n) rows; a vector as one row."""
    dtype, shape, data = tensor
    numbers, width = array(TYPES[dtype], data), shape[-1]
    return Matrix([numbers[row * width : (row + 1) * width] for row in range(prod(shape[:-1]))], width)


def tensor(matrix, shape, dtype):
    """A matrix as a tensor of a shape, each number rounded to the dtype."""
    code = CODES[dtype]
    return code, shape, b"".join(array(TYPES[code], row).tobytes() for row in matrix.rows)


# Operations: forward, and the vector-Jacobian product right under it. Gradients come as functions, so that those which
# are not wanted cost nothing.


def linear(x, weight, bias=None):
    y = x @ weight.T
    return y + bias if bias else y


def linear_vjp(dy, x, weight, bias=None):
    return {"x": lambda: dy @ weight, "weight": lambda: dy.T @ x, "bias": lambda: dy.sum_of_rows()}


def lora(x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep):
    z = x.dropout(mask, keep)
    y = x @ weight.T + (scaling * (z @ a.T)) @ b.T
    y = y + scaling * lora_bias if lora_bias else y
    return y + bias if bias else y


def lora_vjp(dy, x, weight, a, b, bias=None, lora_bias=None, mask=None, *, scaling, keep):
    z, du = x.dropout(mask, keep), scaling * dy
    dh = du @ b
    return {
        "x": lambda: dy @ weight + (dh @ a).dropout(mask, keep),
        "weight": lambda: dy.T @ x,
        "a": lambda: dh.T @ z,
        "b": lambda: du.T @ (z @ a.T),
        "bias": lambda: dy.sum_of_rows(),
        "lora_bias": lambda: du.sum_of_rows(),
    }


OPERATIONS = {"nn.linear": (linear, linear_vjp), "lora.linear": (lora, lora_vjp)}


# Answers.


def answer(metadata, tensors):
    """The metadata and tensors that answer a request."""
    if metadata["protocol"] != "refpeft/1":
        return {"status": "unsupported", "message": "this program speaks refpeft/1"}, {}
    if metadata["request"] == "describe":
        return {"status": "ok", **DESCRIPTION}, {}
    operation, dtype = metadata["operation"], metadata["dtype"]
    if operation not in OPERATIONS or dtype not in CODES:
        return {"status": "unsupported", "message": f"this program has {', '.join(OPERATIONS)} in float32, float64"}, {}
    forward, vjp = OPERATIONS[operation]
    attributes = {name: float(value) for name, value in named("attribute.", metadata).items()}
    given = named("input.", tensors)
    inputs = {name: matrix(t) for name, t in given.items()}
    shapes = {name: shape for name, (_, shape, _) in given.items()}
    if metadata["request"] == "forward":
        y = forward(**inputs, **attributes)
        return {"status": "ok"}, {"output.y": tensor(y, [*shapes["x"][:-1], y.width], dtype)}
    gradients = vjp(matrix(tensors["cotangent.dy"]), **inputs, **attributes)
    wanted = metadata["wanted"].split(",")
    return {"status": "ok"}, {f"gradient.{name}": tensor(gradients[name](), shapes[name], dtype) for name in wanted}


def named(prefix, mapping):
    """What a mapping holds under a prefix, without it."""
    return {key[len(prefix) :]: value for key, value in mapping.items() if key.startswith(prefix)}


def main():
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (request := read_message(requests)) is not None:
        try:
            said, tensors = answer(*request)
        except Exception as error:
            said, tensors = {"status": "error", "message": f"{type(error).__name__}: {error}"}, {}
        write_message(answers, {"protocol": "refpeft/1", **said}, tensors)


if __name__ == "__main__":
    main()

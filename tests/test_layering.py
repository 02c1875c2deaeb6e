"""Layering: arrows point one way, no tolerance is set by hand, and the reference answers no backend under
certification.
"""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import numpy as np
import pytest

import refpeft
from refpeft.operation import find
from refpeft.provenance import ReferenceCalled, guard, poisoned

ROOT = Path(__file__).resolve().parents[1]
ONES = np.ones((2, 2), np.float32)
TOLERANCES = {"rtol", "atol", "rel_tol", "abs_tol", "decimal", "significant"}
COMPARISONS = {
    "allclose",
    "isclose",
    "assert_allclose",
    "assert_almost_equal",
    "assertAlmostEqual",
    "approx",
    "assert_close",
}


def sources(*folders: str) -> list[Path]:
    found = [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]
    assert found
    return found


def imported(tree: ast.AST) -> set[str]:
    """Top-level packages that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names |= {a.value.partition(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return names


def tolerances(tree: ast.AST) -> list[int]:
    """Lines on which a tolerance stands: as a keyword, a parameter with a default, a variable, or a comparison that
    implies one.
    """
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in COMPARISONS or any(k.arg in TOLERANCES for k in node.keywords):
                lines.append(node.lineno)
        if isinstance(node, ast.arg) and node.arg in TOLERANCES:
            lines.append(node.lineno)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.lower() in TOLERANCES:
            lines.append(node.lineno)
        if isinstance(node, ast.Dict):
            lines += [k.lineno for k in node.keys if isinstance(k, ast.Constant) and k.value in TOLERANCES]
    return sorted(set(lines))


@pytest.mark.parametrize("path", sources("refpeft"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_reference_imports_nothing_that_judges_or_rivals_it(path):
    """refpeft knows neither the kit nor a backend nor another array library; what it needs of them comes by plugin."""
    forbidden = {"refpeft_conformance", "refpeft_torch", "refpeft_process", "refpeft_cupy", "refpeft_hf"}
    forbidden |= {"torch", "jax", "cupy", "tensorflow", "hypothesis", "pytest", "peft", "transformers", "bitsandbytes"}
    assert not imported(ast.parse(path.read_text())) & forbidden


@pytest.mark.parametrize("path", sources("conformance", "backends"), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_tolerance_is_set_by_hand(path):
    """Budgets are derived; the kit and the backends hold no rtol, no atol and no comparison that has one built in."""
    assert tolerances(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "np.allclose(a, b)",
        "np.testing.assert_allclose(a, b, 1e-5)",
        "compare(a, b, rtol=1e-3)",
        "torch.testing.assert_close(a, b)",
        "math.isclose(a, b, rel_tol=1e-9)",
        "pytest.approx(3)",
        "self.assertAlmostEqual(a, b, places=5)",
        "assert_array_almost_equal(a, b, decimal=3)",
        "def f(a, *, atol=1e-3): ...",
        "f = lambda rtol: 0",
        "ATOL = 1e-6",
        "options = {'atol': 1}",
    ],
)
def test_the_lint_catches_a_tolerance(line):
    """Each way of writing one is found on its line."""
    assert tolerances(ast.parse("x = 1\n" + line)) == [2]


def test_the_lint_lets_budgets_pass():
    """Derived bounds, array equality and words in strings are no tolerances."""
    assert tolerances(ast.parse("'rtol'\nnp.array_equal(a, b)\nok = distance <= budget\nf(x, axis=0)")) == []


def test_the_lint_sees_every_import():
    """At the top, inside a function, from a package, by name at run time."""
    tree = ast.parse("import a.b\ndef f():\n from c.d import e\n importlib.import_module('g.h')\nfrom . import i")
    assert imported(tree) == {"a", "c", "g"}


CALLS = {
    "the catalogue": lambda: refpeft.catalogue()["nn.linear"](ONES, ONES),
    "the source": lambda: find("nn.linear").forward(ONES, ONES),
    "the vjp": lambda: find("nn.linear").backward(ONES, ONES, ONES),
    "the oracle": lambda: refpeft.oracle("nn.linear", x=ONES, weight=ONES),
    "assert_conforms": lambda: refpeft.assert_conforms("nn.linear", ONES @ ONES, x=ONES, weight=ONES),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_poisoned_reference_answers_nobody(call):
    """While a backend is certified, each way to the reference raises and names it; afterwards all answer again."""
    call()
    with poisoned("cheat"), pytest.raises(ReferenceCalled) as refused:
        call()
    assert str(refused.value) == "nn.linear: backend 'cheat' called the reference while it was being certified."
    call()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_another_thread_is_no_way_round(call):
    """The poison holds in threads that the backend starts, and in those that ran before."""
    raised, go, done = [], threading.Event(), threading.Event()

    def attempt():
        go.wait(10)
        try:
            call()
        except ReferenceCalled as error:
            raised.append(error)
        done.set()

    early = threading.Thread(target=attempt)
    early.start()
    with poisoned("cheat"):
        go.set()
        late = threading.Thread(target=attempt)
        late.start()
        late.join(10)
        early.join(10)
    assert done.is_set()
    assert len(raised) == 2


def test_poison_nests_and_ends_with_an_error():
    """An inner certification ends without ending the outer one; an exception ends its own."""
    with poisoned("outer"):
        with poisoned("inner"):
            pass
        with pytest.raises(ReferenceCalled, match="'outer'"):
            guard("nn.linear", [ONES])
    with pytest.raises(KeyError), poisoned("failing"):
        raise KeyError
    guard("nn.linear", [ONES])


def test_a_source_on_a_backends_own_arrays_is_let_through():
    """What declares its source as shared runs it on its own array type; only plain arrays are refused."""
    torch = pytest.importorskip("torch")
    with poisoned("sharing", shared=True):
        find("nn.linear").forward(torch.ones(2, 2), torch.ones(2, 2))

"""Plugins: a third party's package is found through its entry point, and a broken one is reported and harms nobody."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from refpeft import plugins

THIRD_PARTY = Path(__file__).parents[1] / "examples" / "third_party"

HOOK = "from refpeft.plugins import hookimpl\n@hookimpl\n"
OFFER = HOOK + "def refpeft_backends():\n    "
BACKEND = """
from refpeft.backend import Backend
class Mine(Backend):
    {body}
    def operations(self): return {{}}
    def asarray(self, array, device): return array
    def to_numpy(self, array): return array
"""

BROKEN = {
    "imports-nothing": ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that"),
    "raises-at-import": (
        "raise RuntimeError('no driver\\n  on this machine')",
        "RuntimeError: no driver on this machine",
    ),
    "exits-at-import": ("import sys; sys.exit('go away')", "SystemExit: go away"),
    "asks-at-import": ("import refpeft; refpeft.catalogue()", "PluginError: .* within a hook, not during import"),
    "has-no-hook": ("def refpeft_backends(): return []", "PluginError: it has no hook; .* marked with .*hookimpl"),
    "has-an-unknown-hook": (HOOK + "def refpeft_backend(): return []", "PluginValidationError: unknown hook 'refpeft_"),
    "asks-too-much": (HOOK + "def refpeft_backends(catalogue): return []", "PluginValidationError: .*catalogue"),
    "hook-raises": (OFFER + "raise KeyError('device')", "KeyError: 'device'"),
    "hook-exits": (OFFER + "raise SystemExit(0)", "SystemExit: 0"),
    "returns-rubbish": (OFFER + "return 42", "PluginError: refpeft_backends must return a list, but returned 42"),
    "returns-a-list-of-rubbish": (OFFER + "return ['torch']", "PluginError: .*Backend objects, but returned 'torch'"),
    "returns-a-class": (
        BACKEND.format(body="name = 'cls'") + OFFER + "return [Mine]",
        "PluginError: .* returned <class",
    ),
    "forgets-a-method": (
        "from refpeft.backend import Backend\nclass Mine(Backend): name = 'mine'\n" + OFFER + "return [Mine()]",
        "TypeError: .* abstract",
    ),
    "has-no-name": (BACKEND.format(body="pass") + OFFER + "return [Mine()]", "AttributeError: .*'name'"),
    "has-a-bad-name": (BACKEND.format(body="name = 7") + OFFER + "return [Mine()]", "PluginError: .* string .* is 7"),
    "aaa-takes-the-reference": (
        BACKEND.format(body="name = 'reference'") + HOOK + "def refpeft_backends():\n    return [Mine()]",
        "PluginError: it brings a backend 'reference', a name that another plugin has already",
    ),
    "aaa-takes-an-operation": (
        "from refpeft.operation import operation\n"
        "@operation('lora.linear', 'x[n] -> y[n]')\ndef linear(x): return x\n" + OFFER + "return []",
        "PluginError: lora.linear: declared by refpeft.ops.lora and again by",
    ),
    "operations-raise": (HOOK + "def refpeft_operations(): 1 / 0", "ZeroDivisionError: division by zero"),
    "diagnosis-raises": (HOOK + "def refpeft_diagnose(problem, outputs): 1 / 0", "ZeroDivisionError: division by zero"),
    "diagnosis-is-rubbish": (
        HOOK + "def refpeft_diagnose(outputs):\n    yield 'everything'",
        "PluginError: refpeft_diagnose must return a list, but returned <generator",
    ),
}
"""Plugins by name: their module, and what is said about them."""

ASK = """
import json, numpy as np, refpeft
from refpeft import plugins
from refpeft.errors import PluginError

backends = {name: type(backend).__module__ for name, backend in plugins.backends().items()}
catalogue = {name: operation.__module__ for name, operation in refpeft.catalogue().items()}
try:
    refpeft.assert_conforms("nn.linear", np.zeros((1, 1), "f4"), x=np.ones((1, 1), "f4"), weight=np.ones((1, 1), "f4"))
except AssertionError as error:
    verdict = str(error)
try:
    plugins.backend("hook-raises")
except PluginError as error:
    asked = str(error)
broken = [[b.name, b.distribution, b.version, b.error, str(b)] for b in plugins.broken()]
print(json.dumps([backends, catalogue, verdict, asked, broken]))
"""


def distribute(site: Path, name: str, version: str, entry_points: dict[str, str]) -> None:
    """Write what an installer would leave of a distribution beside its modules."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{plugin} = {module}" for plugin, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[refpeft]", *lines]) + "\n")


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run Python with a folder of installed packages."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=site, timeout=120
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the third-party package, declared as its pyproject.toml says, and every broken plugin beside it."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads((THIRD_PARTY / "pyproject.toml").read_text())["project"]
    shutil.copytree(THIRD_PARTY / "src", site, dirs_exist_ok=True)
    distribute(site, project["name"], project["version"], project["entry-points"]["refpeft"])
    for name, (module, _) in BROKEN.items():
        (site / f"{name.replace('-', '_')}.py").write_text(module)
        distribute(site, f"the-{name}", "0.0.7", {name: name.replace("-", "_")})
    (site / "talks.py").write_text("print('imported')\n" + OFFER + "print('asked'); return []")
    distribute(site, "the-talker", "0.0.7", {"talks": "talks"})
    distribute(site, "the-missing", "0.0.7", {"missing": "a_module_that_was_not_shipped"})
    distribute(site, "the-twin", "0.0.7", {"reference": "refpeft_reversed"})
    return site


@pytest.fixture(scope="module")
def answer(site):
    """What refpeft says with all of them installed: backends, catalogue, a verdict, a refusal, the broken plugins."""
    asked = python(site, "-W", "error", "-c", ASK)
    assert asked.returncode == 0, asked.stderr
    return json.loads(asked.stdout)


def test_third_party_backend_is_found(answer):
    """A backend of another distribution is known by its name, whatever is broken beside it."""
    assert answer[0]["reversed"] == "refpeft_reversed.backend"


def test_own_backends_keep_their_names(answer):
    """A plugin that sorts before refpeft's own takes neither the name of the reference nor that of torch."""
    assert (
        answer[0].items()
        >= {
            "process": "refpeft_process.backend",
            "reference": "refpeft.reference",
            "reversed": "refpeft_reversed.backend",
            "torch": "refpeft_torch.backend",
        }.items()
    )


def test_own_operations_keep_their_names(answer):
    """A plugin that declares lora.linear leaves the catalogue with refpeft's."""
    assert answer[1]["lora.linear"] == "refpeft.ops.lora"
    assert all(module.startswith("refpeft.ops.") for module in answer[1].values())


def test_broken_plugins_do_not_change_a_verdict(answer):
    """A diagnosis that raises, or is no list, leaves the assertion's own message."""
    assert re.match(r"nn\.linear \(float32\) does not conform:\ny\[0, 0\]: expected 1, got 0; ", answer[2])


def test_asking_for_a_broken_plugin_tells_why(answer):
    """Where no backend has the name but a broken plugin has, its error is the answer, in one sentence."""
    assert answer[3] == "plugin 'hook-raises' of the-hook-raises 0.0.7 is broken: KeyError: 'device'."


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugin_is_reported(answer, name):
    """A broken plugin is listed with its distribution, version and error, in one line."""
    found = [row for row in answer[4] if row[0] == name]
    assert [row[1:3] for row in found] == [[f"the-{name}", "0.0.7"]]
    assert re.match(BROKEN[name][1], found[0][3])
    assert "\n" not in found[0][4]


def test_nothing_else_is_reported(answer):
    """Only what is broken is listed: those of the table, one that was not shipped, one with a name that is taken."""
    others = [row[:2] for row in answer[4] if row[0] not in BROKEN]
    assert others == [["missing", "the-missing"], ["reference", "the-twin"]]


def test_what_a_plugin_prints_goes_to_standard_error(site):
    """Standard output holds the answer only, so that it stays parseable."""
    asked = python(site, "-m", "refpeft", "backends", "--json")
    assert json.loads(asked.stdout)
    assert {"imported", "asked"} <= set(asked.stderr.splitlines())


def test_interrupt_is_not_a_broken_plugin(site, tmp_path):
    """The user's interrupt while plugins load ends the program."""
    (tmp_path / "slow.py").write_text("raise KeyboardInterrupt")
    distribute(tmp_path, "the-slow", "0.0.7", {"slow": "slow"})
    assert "KeyboardInterrupt" in python(tmp_path, "-c", "from refpeft import plugins; plugins.backends()").stderr


def as_folder(site: Path) -> str:
    return str(site)


def as_egg_info(site: Path) -> str:
    (info,) = site.glob("*.dist-info")
    (info / "METADATA").rename(info / "PKG-INFO")
    info.rename(site / "the_mine-1.egg-info")
    return str(site)


def as_egg(site: Path) -> str:
    (info,) = site.glob("*.dist-info")
    (info / "METADATA").rename(info / "PKG-INFO")
    info.rename(site / "EGG-INFO")
    return str(site.rename(site.with_suffix(".egg")))


def as_archive(site: Path) -> str:
    return shutil.make_archive(str(site), "zip", site)


@pytest.mark.parametrize("install", [as_folder, as_egg_info, as_egg, as_archive])
def test_a_plugin_is_found_however_it_is_installed(tmp_path, monkeypatch, install):
    """An entry point is found in each layout that importlib.metadata reads from the path."""
    (tmp_path / "site").mkdir()
    distribute(tmp_path / "site", "mine", "1", {"mine": "mine"})
    monkeypatch.setattr(sys, "path", [str(tmp_path / "is-not-there"), install(tmp_path / "site")])
    assert [(e.name, e.distribution, e.version) for e in plugins._third_parties()] == [("mine", "mine", "1")]


def test_a_plugin_is_found_by_a_finder_of_its_own(tmp_path, monkeypatch):
    """A finder that is no folder on the path, and finds distributions, is asked."""
    distribute(tmp_path, "mine", "1", {"mine": "mine"})

    class Finder:
        find_spec = staticmethod(lambda *arguments: None)

        @staticmethod
        def find_distributions(context):
            return map(importlib.metadata.PathDistribution, tmp_path.glob("*.dist-info"))

    monkeypatch.setattr(sys, "path", [])
    assert plugins._third_parties() == []
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert [e.name for e in plugins._third_parties()] == ["mine"]


def test_what_an_older_refpeft_has_left_is_passed_over(tmp_path, monkeypatch):
    """Pulled and not installed anew, refpeft does not count its former entry points as another's."""
    distribute(tmp_path, "refpeft", "0.0.1", {"torch": "refpeft_torch"})
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert plugins._third_parties() == []


def test_third_party_package_passes_its_own_tests(site):
    """The example's test file, which runs the conformance kit on it, passes."""
    run = python(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(THIRD_PARTY / "tests"))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            "return (y.reshape(*x.shape[:-1], len(weight)),), (x, weight, a",
            "return (y.reshape(*x.shape[:-1], len(weight)) * np.float32(1 + 1e-5),), (x, weight, a",
        ),
        ("    du = s * dy\n", "    du = dy\n"),
    ],
    ids=["output off by 1e-5", "scaling forgotten in the gradient"],
)
def test_third_party_tests_see_a_fault(site, tmp_path, right, wrong):
    """The example's test file fails on a copy of the package with one fault."""
    faulty = tmp_path / "site"
    shutil.copytree(site, faulty, ignore=shutil.ignore_patterns("__pycache__"))
    module = faulty / "refpeft_reversed" / "operations.py"
    source = module.read_text()
    assert source.count(right) == 1
    module.write_text(source.replace(right, wrong))
    tests = str(THIRD_PARTY / "tests")
    run = python(faulty, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "lora.linear-random", tests)
    assert run.returncode == 1
    assert "Violation" in run.stdout


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling builds the package")
def test_third_party_package_installs(tmp_path):
    """pip builds and installs the example, offline, and its backend is there."""
    target = tmp_path / "target"
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", f"--target={target}"]
    installed = python(tmp_path, "-m", "pip", "install", *options, str(THIRD_PARTY))
    assert installed.returncode == 0, installed.stderr
    ask = "from refpeft import plugins; print(plugins.backend('reversed').versions())"
    assert python(target, "-c", ask).stdout == "{'refpeft-reversed': '1.2.3'}\n"

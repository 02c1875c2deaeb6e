"""Programs as backends: the examples conform, faults in them are found, and no program can hang or fool refpeft."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from refpeft import plugins
from refpeft.errors import AttributeValueError, CapabilityError, FormatError, RefpeftError
from refpeft.formats.safetensors import dumps, loads
from refpeft.numerics.formats import FLOAT32, FLOAT64, TF32
from refpeft.numerics.precision import Precision
from refpeft.operation import find
from refpeft_conformance.strategies import problems, regimes_of
from refpeft_conformance.subject import Subject
from refpeft_conformance.verdict import Observation, Violation
from refpeft_process.backend import ProcessBackend
from refpeft_process.protocol import request_metadata, text

ROOT = Path(__file__).parents[1]
CPP, PYTHON = ROOT / "examples" / "process_cpp", ROOT / "examples" / "process_python"
DOCS = (ROOT / "docs" / "protocol.md").read_text()

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
languages = pytest.mark.parametrize("language", [pytest.param("cpp", marks=compiled), "python"])

X, WEIGHT = np.array([[1, 2]], np.float32), np.array([[3, -0.5]], np.float32)


def command(*arguments) -> str:
    """A command line of these words."""
    return shlex.join(map(str, arguments))


def compile_with(options: str, folder: Path) -> None:
    """Compile the C++ example in a folder with the README's own line and more options."""
    line = re.search(r"^g\+\+ .*$", (CPP / "README.md").read_text(), re.MULTILINE)[0]
    subprocess.run([*shlex.split(line), *options.split()], cwd=folder, check=True)


@functools.cache
def _built(folder: Path) -> str:
    shutil.copy(CPP / "backend.cpp", folder)
    compile_with("-Wall -Wextra -Wpedantic -Werror", folder)
    return command(folder / "backend")


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """The command of an example by language; the C++ one is compiled at its first use, without a warning."""
    folder = tmp_path_factory.mktemp("built")
    return lambda language: _built(folder) if language == "cpp" else command(sys.executable, PYTHON / "backend.py")


def hold(backend, operation: str, dtype: str, examples: int, gradients: bool = True) -> None:
    """Run an operation on problems of all regimes; raise Violation at the first that does not conform."""
    subject = Subject(backend)
    regime = st.sampled_from((*regimes_of(operation), "exact"))

    @seed(1)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(regime.flatmap(lambda r: problems(operation, dtype=dtype, regime=r, precision=subject.precision(dtype))))
    def check(problem):
        subject.hold(problem, Observation(), gradients=False)
        subject.hold(problem, Observation(), gradients=True)

    check()


@languages
@pytest.mark.parametrize("operation", ["nn.linear", "lora.linear"])
def test_example_conforms(example, language, operation):
    """Outputs and gradients of the examples lie within their budgets, in every dtype that they declare."""
    with ProcessBackend(example(language)) as backend:
        assert backend.unavailable() is None
        dtypes = [dtype for dtype in ("float64", "float32", "bfloat16") if backend.precision(dtype)]
        assert dtypes == ["float64", "float32", "bfloat16"][: 3 if language == "cpp" else 2]
        for dtype in dtypes:
            hold(backend, operation, dtype, examples=16)


FAULTS = {
    "cpp": [
        ("scaling forgotten in dB", 'gradient("b", du.t()', 'gradient("b", dy.t()', "float32"),
        ("last term left out", "k < a.columns; ++k) sum", "k + 1 < a.columns; ++k) sum", "float64"),
        ("bfloat16 cut off", "(wide + 0x7fff + (wide >> 16 & 1)) >> 16", "wide >> 16", "bfloat16"),
    ],
    "python": [
        ("scaling applied twice", "(scaling * (z @ a.T)) @ b.T", "(scaling * (scaling * (z @ a.T))) @ b.T", "float32"),
        ("no dropout in dx", "(dh @ a).dropout(mask, keep)", "(dh @ a)", "float32"),
        (
            "sums promised in float64, done in float32",
            "sum(p * q for p, q in zip(row, column))",
            "sum((single(p * q) for p, q in zip(row, column)), 0)",
            "float32",
        ),
        (
            "a gradient of the wrong shape",
            "shapes[name], dtype) for name in wanted",
            "shapes[name][::-1], dtype) for name in wanted",
            "float32",
        ),
    ],
}


@pytest.mark.parametrize(
    ("language", "right", "wrong", "dtype"),
    [
        pytest.param(language, *fault[1:], id=f"{language}: {fault[0]}", marks=[compiled] * (language == "cpp"))
        for language, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_fault_in_an_example_is_found(tmp_path, language, right, wrong, dtype):
    """An example with one fault in it is refused, within the problems that it passes without."""
    name = "backend.cpp" if language == "cpp" else "backend.py"
    source = ((CPP if language == "cpp" else PYTHON) / name).read_text()
    assert source.count(right) == 1
    helper = "\ndef single(number):\n    return array('f', [number])[0]\n\n\ndef main"
    (tmp_path / name).write_text(
        source.replace(right, wrong).replace("\ndef main", helper if "single" in wrong else "\ndef main")
    )
    if language == "cpp":
        compile_with("-O0", tmp_path)
    program = command(tmp_path / "backend") if language == "cpp" else command(sys.executable, tmp_path / name)
    with ProcessBackend(program) as backend, pytest.raises(Violation):
        hold(backend, "lora.linear", dtype, examples=40)


@languages
@pytest.mark.parametrize(
    ("n", "i", "o", "r"), [((0,), 3, 2, 1), ((2,), 0, 2, 1), ((2,), 3, 0, 1), ((2, 3), 3, 2, 0), ((), 3, 2, 1)]
)
def test_example_takes_empty_arrays(example, language, n, i, o, r):
    """Dims of size 0, and no leading axes at all, give results of the right shape."""
    one = np.float32(1)
    shapes = {"x": (*n, i), "weight": (o, i), "a": (r, i), "b": (o, r), "bias": (o,), "lora_bias": (o,)}
    inputs = {name: np.full(shape, one) for name, shape in shapes.items()}
    with ProcessBackend(example(language)) as backend:
        lora = backend.implementation("lora.linear")
        (y,), residuals = lora.forward(*inputs.values(), np.ones((*n, i), bool), scaling=2.0, keep=0.5)
        gradients = lora.vjp(residuals, (np.full((*n, o), one),), tuple(inputs))
    count = int(np.prod(n))
    np.testing.assert_array_equal(y, np.full((*n, o), i + 2 * (2 * i) * r + 3, np.float32))
    assert [g.shape for g in gradients] == list(shapes.values())
    np.testing.assert_array_equal(gradients[1], np.full((o, i), count, np.float32))
    np.testing.assert_array_equal(gradients[5], np.full(o, 2 * count, np.float32))


# What is on the wire.


def hexdump(title: str) -> bytes:
    """The bytes of a hexdump of the page."""
    body = re.search(f"^```hexdump {title}\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)[1]
    return bytes.fromhex("".join(line[10:58] for line in body.splitlines()))


def test_request_on_the_page_is_what_is_sent(tmp_path):
    """The page's example is, byte for byte, the request that a program gets."""
    spy = tmp_path / "spy.py"
    spy.write_text(
        f"import sys\nopen({str(tmp_path / 'seen')!r}, 'wb').write(sys.stdin.buffer.read({len(hexdump('request'))}))"
    )
    backend = ProcessBackend(command(sys.executable, spy))
    with pytest.raises(CapabilityError, match="ended with status 0"):
        backend._compute(find("nn.linear"), "output", ["y"], {"x": X, "weight": WEIGHT}, {}, {})
    assert (tmp_path / "seen").read_bytes() == hexdump("request")


@languages
def test_answer_on_the_page_is_an_answer(example, language):
    """The examples answer the page's request with the page's answer, and end when their input does."""
    run = subprocess.run(shlex.split(example(language)), input=hexdump("request"), capture_output=True, timeout=60)
    answer, expected = loads(run.stdout), loads(hexdump("answer"))
    assert (run.returncode, run.stderr, answer.metadata) == (0, b"", expected.metadata)
    np.testing.assert_array_equal(answer.tensors["output.y"], expected.tensors["output.y"], strict=True)


def test_page_names_every_key():
    """Each key of a request is described on the page."""
    metadata = request_metadata("vjp", "lora.linear", "float32", {"keep": 0.5}, ("x", "a"))
    assert metadata == {
        "protocol": "refpeft/1",
        "request": "vjp",
        "operation": "lora.linear",
        "dtype": "float32",
        "wanted": "x,a",
        "attribute.keep": "0.5",
    }
    for key in (*metadata.keys() - {"attribute.keep"}, "attribute.NAME"):
        assert f"| `{key}` |" in DOCS


def test_request_needs_no_escapes():
    """A request's header has its metadata first, tensors as the page writes them, no white space and a length of 8n."""
    request = dumps(
        {"input.x": X}, request_metadata("forward", "nf4.quantize", "float32", {"kernel": (2, 1), "mode": "same"})
    )
    length = int.from_bytes(request[:8], "little")
    header = request[8 : 8 + length].decode("ascii")
    assert length % 8 == 0
    assert header.rstrip(" ") == (
        '{"__metadata__":{"attribute.kernel":"2,1","attribute.mode":"same","dtype":"float32","operation":"nf4.quantize",'
        '"protocol":"refpeft/1","request":"forward"},"input.x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'
    )


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_survives_as_text(number):
    """A number that a program reads as binary64 is the attribute, bit for bit, whichever float type held it."""
    assert float(text(number)).hex() == number.hex()
    assert text(np.float64(number)) == text(number)


def test_text_of_the_other_attributes():
    """Flags, integers, pairs and words are written as the page says, never as Python would."""
    values = [True, np.False_, 3, np.int64(-3), (2, 1), [2, 1], "same"]
    assert [text(value) for value in values] == ["true", "false", "3", "-3", "2,1", "2,1", "same"]


@pytest.mark.parametrize("word", ['a"b', "a\\b", "ü", "a\nb", "\x7f"])
def test_word_that_needs_escapes_is_refused(word):
    """A string that JSON would escape, or that is not ASCII, is never sent."""
    with pytest.raises(AttributeValueError, match="cannot be sent to a program"):
        text(word)


# Programs that behave, and programs that do not.

PRELUDE = f"""
import os, signal, struct, subprocess, sys, time
sys.path.insert(0, {str(PYTHON)!r})
from backend import DESCRIPTION, answer, read_message, write_message
stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
OK = {{"protocol": "refpeft/1", "status": "ok"}}
Y = {{"output.y": ("F32", [1, 1], struct.pack("<f", 2))}}
def pack(metadata, tensors):
    import io
    stream = io.BytesIO()
    write_message(stream, metadata, tensors)
    return stream.getvalue()
def lie(data, true, false):
    header = data[8:].replace(true, false)
    return struct.pack("<Q", len(header) - len(data) + 8 + int.from_bytes(data[:8], "little")) + header
def say(data):
    stdout.write(data)
    stdout.flush()
def serve(request):
    metadata, tensors = answer(*request)
    write_message(stdout, {{"protocol": "refpeft/1", **metadata}}, tensors)
while (request := read_message(stdin)) is not None:
    if request[0]["request"] == "describe":
        serve(request)
        continue
"""


@pytest.fixture
def misbehaving(tmp_path):
    """A backend that describes itself as the Python example does, and answers anything else with these statements."""
    started = []

    def start(statements: str, timeout: float = 20.0) -> ProcessBackend:
        script = tmp_path / f"program{len(started)}.py"
        script.write_text(PRELUDE + "".join(f"    {line}\n" for line in statements.splitlines()))
        started.append(ProcessBackend(command(sys.executable, script), timeout))
        assert started[-1].unavailable() is None
        return started[-1]

    yield start
    for backend in started:
        backend.close()


def forward(backend, x=X, weight=WEIGHT):
    """One forward of nn.linear."""
    return backend.implementation("nn.linear").forward(x, weight)[0][0]


MISDEEDS = {
    "exits": ("sys.exit(3)", CapabilityError, "ended with status 3"),
    "exits with last words": (
        "sys.exit('no\\x1b[31m device\\n')",
        CapabilityError,
        r"ended with status 1; its last words were 'no \[31m device'",
    ),
    "raises": (
        "raise MemoryError('64 GiB')",
        CapabilityError,
        "ended with status 1; its last words were 'MemoryError: 64 GiB'",
    ),
    "crashes": ("os.kill(os.getpid(), signal.SIGSEGV)", CapabilityError, "was ended by signal SIGSEGV"),
    "aborts within its answer": (
        "say(pack(OK, Y)[:40]); os.abort()",
        FormatError,
        "it was ended by signal SIGABRT.*: .*ended inside its header",
    ),
    "ends within its header's length": ("say(b'abc'); sys.exit(0)", FormatError, "ended inside its header length"),
    "ends within its tensors": (
        "say(pack(OK, Y)[:-1]); sys.exit(0)",
        FormatError,
        "it ended with status 0.*: .*ended inside its tensors",
    ),
    "closes its output": ("stdout.close(); os.close(1); time.sleep(60)", CapabilityError, "closed its standard output"),
    "prints": ("print('Loading kernels ...', flush=True); serve(request)", FormatError, r"it began with b'Loading '"),
    "answers with text": (
        'say(b\'{"status": "ok"}\\n\')',
        FormatError,
        "did not answer forward of nn.linear in float32 with a message",
    ),
    "claims a header of 2**63": ("say(struct.pack('<Q', 1 << 63))", FormatError, "header of at most"),
    "claims a tensor of 2**62": (
        "say(lie(pack(OK, Y), b'[0, 4]', b'[0, 4611686018427387904]'))",
        FormatError,
        "has 4611686018427387904 bytes, expected 4",
    ),
    "claims a tensor of 1 GB": (
        "say(lie(pack(OK, {'output.y': ('U8', [2**30], b'')}), b'[0, 0]', b'[0, 1073741824]'))",
        FormatError,
        "its length is 10737.* bytes, expected at most",
    ),
    "has overlapping tensors": (
        "say(lie(pack(OK, Y | {'output.z': Y['output.y']}), b'[4, 8]', b'[0, 4]'))",
        FormatError,
        "starts at byte 0 of the data, expected 4",
    ),
    "sends deep JSON": (
        "say(struct.pack('<Q', 10**5 + 5) + b'{\"a\":' + b'[' * 10**5)",
        FormatError,
        "nested too deeply",
    ),
    "sends an unknown dtype": ("say(pack(OK, {'output.y': ('F8', [1, 1], b'0')}))", FormatError, "dtype 'F8'"),
    "floods standard output": ("while True: say(b'\\xff' * 65536)", FormatError, "header of at most"),
    "floods standard error": (
        "while True: os.write(2, b'warning: slow\\n' * 4096)",
        CapabilityError,
        "more than 1048576 bytes to standard error",
    ),
    "says nothing of a status": (
        "say(pack({'protocol': 'refpeft/1'}, Y))",
        FormatError,
        "status of ok, error or unsupported, got none",
    ),
    "has a status of its own": ("say(pack(OK | {'status': 'fine'}, Y))", FormatError, "got 'fine'"),
    "speaks another protocol": (
        "say(pack(OK | {'protocol': 'refpeft/2'}, Y))",
        FormatError,
        "protocol 'refpeft/1', got 'refpeft/2'",
    ),
    "forgets the output": ("say(pack(OK, {}))", FormatError, "must hold the tensors output.y, got no tensors"),
    "misnames the output": (
        "say(pack(OK, {'y': Y['output.y']}))",
        FormatError,
        "must hold the tensors output.y, got the tensors y",
    ),
    "adds a tensor": (
        "say(pack(OK, Y | {'output.z': Y['output.y']}))",
        FormatError,
        "got the tensors output.y, output.z",
    ),
    "reports an error": (
        "say(pack(OK | {'status': 'error', 'message': 'out of\\nmemory.'}, {}))",
        CapabilityError,
        "reports an error in forward of nn.linear in float32: out of memory",
    ),
    "does not support it": (
        "say(pack(OK | {'status': 'unsupported'}, {}))",
        CapabilityError,
        "does not support forward of nn.linear in float32",
    ),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_misdeed_is_one_sentence_and_nothing_else(misbehaving, misdeed):
    """Whatever a program does instead of answering gives one sentence that names the request, and leaves no process."""
    statements, error, words = MISDEEDS[misdeed]
    backend = misbehaving(statements)
    process = backend._program._process
    start = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        forward(backend)
    sentence = str(caught.value)
    assert time.monotonic() - start < 10
    assert type(caught.value) is error
    assert "forward of nn.linear in float32" in sentence
    assert sentence.endswith(".") and sentence.isprintable() and len(sentence) < 1000
    in_step = "the answer to" in sentence or "the program" in sentence[:20]
    assert (process.poll() is None) == in_step, "a program is let live only where its answer was a whole message"
    assert in_step or not alive(process.pid)


def alive(pid: int) -> bool:
    """Whether a process exists, be it as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid: int) -> bool:
    """Whether a process that is not our child disappears, or is left to init as a zombie, within five seconds."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not alive(pid) or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    "statements",
    [
        "time.sleep(60)",
        "say(pack(OK, Y)[:-1]); time.sleep(60)",
        "for byte in pack(OK, Y): say(bytes([byte])); time.sleep(0.1)",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["sleeps", "withholds the last byte", "sends a byte at a time", "ignores SIGTERM", "stops itself"],
)
def test_slow_program_is_ended(misbehaving, statements):
    """A program that has not answered in full when its time is over is killed and reaped, however it spent the time."""
    backend = misbehaving(statements)
    backend.timeout = 0.4
    pid = backend._program._process.pid
    start = time.monotonic()
    with pytest.raises(CapabilityError, match=r"did not answer forward of nn\.linear in float32 within 0\.4 seconds"):
        forward(backend)
    assert time.monotonic() - start < 2
    assert not alive(pid)


def test_children_of_a_program_end_with_it(misbehaving, tmp_path):
    """A process that the program started, and that holds its pipes open, is killed with it and delays nothing."""
    note = tmp_path / "pid"
    backend = misbehaving(
        f"child = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    backend.timeout = 1.0
    with pytest.raises(CapabilityError, match="within 1 seconds"):
        forward(backend)
    assert gone(int(note.read_text()))


def test_program_that_does_not_read_is_ended(tmp_path):
    """A request larger than any pipe, to a program that stops reading, ends with its time."""
    script = tmp_path / "deaf.py"
    script.write_text(PRELUDE.split("while (request")[0] + "serve(read_message(stdin)); time.sleep(60)")
    backend = ProcessBackend(command(sys.executable, script), 20)
    assert backend.unavailable() is None
    backend.timeout = 0.4
    large = np.ones((1024, 1024), np.float32)
    with pytest.raises(CapabilityError, match=r"within 0\.4 seconds"):
        forward(backend, large[:1], large)


def test_early_answer_to_a_large_request_keeps_step(tmp_path):
    """A program that answers from the header alone, before it has read megabytes of tensors, blocks neither side."""
    script = tmp_path / "early.py"
    script.write_text(
        PRELUDE.split("while (request")[0]
        + """
import json
while length := stdin.read(8):
    header = json.loads(stdin.read(int.from_bytes(length, "little")))
    described = header.pop("__metadata__")["request"] == "describe"
    size = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    say(pack(OK | DESCRIPTION, {}) if described else pack(OK, {"output.y": ("F32", [1, 1024], bytes(4096))}))
    stdin.read(size)
"""
    )
    large = np.ones((1024, 1024), np.float32)
    with ProcessBackend(command(sys.executable, script), 20) as backend:
        for _ in range(3):
            np.testing.assert_array_equal(forward(backend, large[:1], large), np.zeros((1, 1024), np.float32))


def test_large_answer_goes_through(example):
    """An answer of many pipes' size, beside a request of few bytes, arrives whole."""
    with ProcessBackend(example("python")) as backend:
        y = forward(backend, np.full((1000, 1), 3, np.float32), np.full((1000, 1), 2, np.float32))
    np.testing.assert_array_equal(y, np.full((1000, 1000), 6, np.float32))


def test_standard_error_is_free_for_messages(misbehaving):
    """Standard error just below the limit, in each of several requests, changes no answer."""
    backend = misbehaving("os.write(2, b'=' * (1 << 20)); serve(request)")
    for _ in range(3):
        np.testing.assert_array_equal(forward(backend), [[2]])


def test_output_between_requests_is_refused(misbehaving):
    """Bytes after an answer are not taken for the next one's; the next program starts in step."""
    backend = misbehaving("say(pack(OK, Y) + b'done')")
    np.testing.assert_array_equal(forward(backend), [[2]])
    with pytest.raises(FormatError, match=r"wrote to standard output before it was asked for forward of nn\.linear"):
        forward(backend)
    np.testing.assert_array_equal(forward(backend), [[2]])


def test_program_lives_across_requests(example):
    """One process answers request after request."""
    with ProcessBackend(example("python")) as backend:
        forward(backend)
        pid = backend._program._process.pid
        forward(backend)
        assert backend._program._process.pid == pid


def test_program_is_restarted_after_its_death(misbehaving, tmp_path):
    """The request after one that killed the program is answered by another."""
    flag = tmp_path / "flag"
    backend = misbehaving(f"if os.path.exists({str(flag)!r}): os.remove({str(flag)!r}); os.abort()\nserve(request)")
    flag.touch()
    with pytest.raises(CapabilityError, match="SIGABRT"):
        forward(backend)
    np.testing.assert_array_equal(forward(backend), [[2]])


def test_interrupt_ends_the_program(misbehaving):
    """The user's interrupt during a request leaves no process, and the next request starts in step."""
    backend = misbehaving("time.sleep(60)")
    pid = backend._program._process.pid
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            forward(backend)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not alive(pid)
    assert backend.unavailable() is None


# Starting and ending.

UNAVAILABLE = {
    "no command": ("", "needs a program: give one with --command or REFPEFT_COMMAND"),
    "no such file": ("./no-such-backend --fast", r"program './no-such-backend --fast' was not found"),
    "a folder": ("/", "could not be started: Permission denied"),
    "silent": ("true", "did not answer describe: it ended with status 0"),
    "echo": ("cat", "the answer to describe must have a status"),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_backend_that_is_unavailable_tells_why(case):
    """A program that cannot be started, or does not describe itself, makes the backend unavailable, with the reason."""
    line, reason = UNAVAILABLE[case]
    backend = ProcessBackend(line, timeout=10)
    assert re.search(reason, backend.unavailable())
    assert backend.unavailable().endswith(".")
    assert backend.name == "process"
    backend.close()


@pytest.mark.parametrize(("line", "timeout"), [("'./a", 1.0), ("./a", -1.0), ("./a", float("nan"))])
def test_impossible_backend_is_refused(line, timeout):
    """An open quote, or a timeout that is negative or no number, is refused when the backend is made."""
    with pytest.raises(CapabilityError):
        ProcessBackend(line, timeout)


def test_missing_file_is_explained(tmp_path, monkeypatch):
    """A program in the current folder needs ./, and a script needs its interpreter: both are said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backend").write_text("#!/no/such/interpreter\n")
    (tmp_path / "backend").chmod(0o755)
    assert (
        ProcessBackend("backend").unavailable()
        == "program 'backend' was not found; the one in the current folder is called ./backend."
    )
    assert "the interpreter that its first line names does not" in ProcessBackend("./backend").unavailable()


def test_no_shell_reads_the_command(tmp_path):
    """Quotes group words; variables, globs, pipes and semicolons reach the program as they are."""
    script = tmp_path / "words.py"
    script.write_text(
        PRELUDE.replace("    if request", "    DESCRIPTION['version'] = repr(sys.argv[1:])\n    if request")
    )
    with ProcessBackend(f"{command(sys.executable, script)} $HOME '*  |' ;ls \"a b\"") as backend:
        assert backend.versions() == {"example-python": "['$HOME', '*  |', ';ls', 'a b']"}


def test_listing_backends_starts_no_program(monkeypatch, tmp_path):
    """The hook offers the program of REFPEFT_COMMAND without running it."""
    import refpeft_process

    monkeypatch.setenv("REFPEFT_COMMAND", command("touch", tmp_path / "ran"))
    (backend,) = refpeft_process.refpeft_backends()
    assert (backend.name, backend.summary) == ("process", f"the program touch {tmp_path}/ran")
    assert not (tmp_path / "ran").exists()
    assert isinstance(plugins.backend("process"), ProcessBackend)


def test_pickled_backend_runs_its_own_program(example):
    """A copy for a worker process has the command and timeout, and starts a program of its own."""
    with ProcessBackend(example("python"), timeout=7) as backend:
        forward(backend)
        with pickle.loads(pickle.dumps(backend)) as copy:
            assert (copy.command, copy.timeout) == (backend.command, 7.0)
            np.testing.assert_array_equal(forward(copy), [[2]])
            assert copy._program._process.pid != backend._program._process.pid


def _in_worker(backend, sender):
    y = forward(backend)
    sender.send((y.tolist(), backend._program._process.pid))
    backend.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_process_runs_its_own_program(example, method):
    """A backend that was used before a fork, or sent to a spawned worker, disturbs neither process's program."""
    context = multiprocessing.get_context(method)
    with ProcessBackend(example("python")) as backend:
        forward(backend)
        mine = backend._program._process.pid
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_in_worker, args=(backend, sender))
        worker.start()
        assert receiver.poll(30)
        y, theirs = receiver.recv()
        worker.join(30)
        assert (y, worker.exitcode) == ([[2.0]], 0)
        np.testing.assert_array_equal(forward(backend), [[2]])
        assert backend._program._process.pid == mine != theirs


def test_threads_share_one_program(example):
    """Requests from several threads are answered one after another, each with its own answer."""
    with ProcessBackend(example("python")) as backend, ThreadPoolExecutor(4) as pool:
        inputs = [np.full((1, 2), k, np.float32) for k in range(40)]
        outputs = list(pool.map(lambda x: forward(backend, x), inputs))
    np.testing.assert_array_equal(np.ravel(outputs), [2.5 * k for k in range(40)])


@pytest.mark.parametrize("ending", ["pass", "del backend", "raise SystemExit(1)", "import os; os._exit(0)"])
def test_program_ends_with_its_user(example, ending):
    """No program outlives refpeft: not a normal end, not a forgotten backend, not a process that just disappears."""
    script = f"""
from refpeft_process.backend import ProcessBackend
backend = ProcessBackend({example("python")!r})
assert backend.unavailable() is None
print(backend._program._process.pid, flush=True)
{ending}
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    assert gone(int(run.stdout))


def test_program_may_end_in_its_own_time(tmp_path):
    """When its input ends a program is given a moment to write a profile or free a device, and is not killed first."""
    note = tmp_path / "ended"
    script = tmp_path / "tidy.py"
    script.write_text(PRELUDE + f"    serve(request)\ntime.sleep(0.2)\nopen({str(note)!r}, 'w').write('tidy')\n")
    backend = ProcessBackend(command(sys.executable, script))
    assert backend.unavailable() is None
    backend.close()
    assert note.read_text() == "tidy"


# What a program says of itself.


@pytest.fixture
def describing(tmp_path):
    """A backend whose program describes itself with these changes; None takes a key away."""
    made = []

    def make(**changes) -> ProcessBackend:
        script = tmp_path / f"describe{len(made)}.py"
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        missing = "".join(f"del DESCRIPTION[{key!r}]\n" for key, value in changes.items() if value is None)
        changed = f"DESCRIPTION.update({changes!r})\n{missing}"
        script.write_text(PRELUDE.replace("while (request", changed + "while (request"))
        made.append(ProcessBackend(command(sys.executable, script), 20))
        return made[-1]

    yield make
    for backend in made:
        backend.close()


def test_description_becomes_the_backend(describing):
    """Name, version, operations, forward-only ones, dtypes, determinism and every promise are as the program says."""
    backend = describing(
        name="cuda-lora",
        version="2.1 (sm_90)",
        operations=" nn.linear:forward, lora.linear ",
        dtypes="float32, bfloat16",
        deterministic="false",
        training="true",
        precision__float32__accumulation="float64",
        precision__float32__operands="tf32",
        precision__float32__splits="4",
        precision__float32__flush_to_zero="true",
        precision__float32__elementary_ulps="8",
        frozen__lora__linear="weight",
        frozen__hra__linear="u",
        color="blue",
    )
    assert backend.unavailable() is None
    assert {name: i.frozen for name, i in backend.operations().items()} == {"nn.linear": (), "lora.linear": ("weight",)}
    assert (backend.name, backend.versions(), backend.deterministic) == (
        "cuda-lora",
        {"cuda-lora": "2.1 (sm_90)"},
        False,
    )
    assert {name: i.vjp is not None for name, i in backend.operations().items()} == {
        "nn.linear": False,
        "lora.linear": True,
    }
    assert backend.precision("float32") == Precision(
        storage=FLOAT32, accumulation=FLOAT64, operands=TF32, splits=4, flush_to_zero=True, elementary_ulps=8.0
    )
    assert backend.precision("bfloat16").accumulation == FLOAT32
    assert backend.precision("float64") is None
    assert backend.training
    assert describing(deterministic=None).deterministic
    assert not describing().training


BAD_DESCRIPTIONS = {
    "no name": ({"name": None}, "must have the metadata name"),
    "a blank version": ({"version": " "}, "must have the metadata version"),
    "no operations": ({"operations": None}, "must have the metadata operations"),
    "a name with a slash": ({"name": "../../etc"}, "has name '../../etc'"),
    "the reference's name": ({"name": "reference"}, "calls itself 'reference', as a registered backend is called"),
    "torch's name": ({"name": "Torch"}, "calls itself 'Torch', as a registered backend is called"),
    "a version of two lines": ({"version": "1\n2"}, "printable"),
    "an operation with a space": ({"operations": "lora linear"}, "lists 'lora linear': expected names of"),
    "an operation with an odd mark": ({"operations": "nn.linear:backward"}, "may be marked :forward"),
    "a dtype with a bracket": ({"dtypes": "float<8>"}, "lists 'float<8>': expected names of"),
    "an odd boolean": ({"deterministic": "yes"}, "deterministic 'yes', expected true or false"),
    "an unknown promise": (
        {"precision__float32__rounding": "up"},
        "precision.float32.rounding; a precision consists of",
    ),
    "an unknown accumulation": ({"precision__float32__accumulation": "int8"}, "expected one of float64"),
    "no splits": ({"precision__float32__splits": "0"}, "expected a positive integer"),
    "endless error": ({"precision__float32__elementary_ulps": "inf"}, "expected a positive number"),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_bad_description_is_refused(describing, case):
    """A description that lacks something, or promises what cannot be, makes the backend unavailable."""
    changes, reason = BAD_DESCRIPTIONS[case]
    backend = describing(**changes)
    assert reason in backend.unavailable()
    with pytest.raises(RefpeftError):
        backend.operations()


def test_a_program_may_not_freeze_what_is_trained(describing):
    """Nor what an operation does not have; the sentence says what may be frozen."""
    backend = describing(operations="lora.linear", frozen__lora__linear="weight, a")
    with pytest.raises(CapabilityError, match=r"lora.linear frozen in \('weight', 'a'\): expected a tuple out of"):
        backend.implementation("lora.linear")


def test_a_program_is_never_asked_for_a_frozen_gradient(example, monkeypatch):
    """None stands in its place, and the others are those of the program."""
    a, b = np.ones((1, 2), np.float32), np.zeros((1, 1), np.float32)
    with ProcessBackend(example("python")) as backend:
        monkeypatch.setitem(backend._described.frozen, "lora.linear", ("weight",))
        lora = backend.implementation("lora.linear")
        (y,), residuals = lora.forward(X, WEIGHT, a, b, scaling=1.0)
        dx, dweight = lora.vjp(residuals, [np.ones_like(y)], ("x", "weight"))
        assert dweight is None
        assert np.array_equal(dx, WEIGHT)


def test_what_a_newer_program_offers_is_left_out(describing):
    """Operations and dtypes that this refpeft does not know harm nothing that it knows, and each is told."""
    backend = describing(operations="lora.liner, nn.linear, next.thing:forward", dtypes="float32, float8_e4m3")
    assert backend.unavailable() is None
    assert list(backend.operations()) == ["nn.linear"]
    assert backend.precision("float32") is not None
    misspelt, newer, dtype = backend.unknown
    assert "did you mean lora.linear" in misspelt
    assert "'next.thing'" in newer
    assert "'float8_e4m3'" in dtype


def test_a_registered_name_may_be_used_by_the_registered_backend(describing, monkeypatch):
    """A program that is itself registered under its name is not taken for an impostor."""
    backend = describing(name="chip")
    monkeypatch.setitem(plugins.backends(), "chip", backend)
    assert backend.unavailable() is None
    assert "registered" in describing(name="chip").unavailable()


def test_without_a_limit_a_program_may_take_its_time(misbehaving):
    """A timeout of 0 means none."""
    backend = misbehaving("time.sleep(0.5); serve(request)", timeout=0)
    np.testing.assert_array_equal(forward(backend), [[2]])


def test_running_out_of_time_is_told_from_other_failures(misbehaving):
    """It is a TimeoutError, so that nobody tries the same again to reduce it."""
    backend = misbehaving("time.sleep(60)")
    backend.timeout = 0.3
    with pytest.raises(TimeoutError, match=r"within 0\.3 seconds"):
        forward(backend)
    backend = misbehaving("sys.exit(3)")
    with pytest.raises(CapabilityError) as caught:
        forward(backend)
    assert not isinstance(caught.value, TimeoutError)

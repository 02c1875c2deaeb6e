"""Continuations: transformers' own tokens, adapters switched over one base, and draws as often as they are likely."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from refpeft.cli import main
from refpeft.errors import AttributeValueError, FormatError, ShapeError
from refpeft.formats import peft
from refpeft.formats.adapter import Adapter
from refpeft.methods import LoRA
from refpeft.models import load
from refpeft.models.chat import ask
from refpeft.models.generate import Sampling, generate
from refpeft.models.tokens import ending, files, tokenizer

PROMPT = [40, 200, 7, 9]


def run(*arguments):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tiny_llama, tmp_path_factory):
    """A random Llama whose weights are large enough to have opinions, a chat template, and no token that ends a text."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("generate") / "llama"
    shutil.copytree(tiny_llama, folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    theirs.generation_config.eos_token_id = theirs.config.eos_token_id = None
    theirs.save_pretrained(folder)
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %} >{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """Two random adapters, in peft's form."""
    random, found = np.random.default_rng(0), {}
    for name in ("first", "second"):
        arrays = {
            f"layers.{i}.attn.{m}": {"a": random.normal(size=(2, 32)), "b": random.normal(size=(o, 2))}
            for i in range(2)
            for m, o in (("q", 32), ("v", 16))
        }
        arrays = {site: {n: a.astype(np.float32) for n, a in given.items()} for site, given in arrays.items()}
        found[name] = tmp_path_factory.mktemp("adapters") / name
        peft.save(found[name], Adapter(LoRA(rank=2, alpha=4), arrays))
    return found


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_the_likeliest_tokens_are_transformers(model, backend):
    """Token after token, with keys and values kept."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, pad_token_id=0)[
        0, 4:
    ].tolist()
    assert list(generate(load(model, backend=backend), PROMPT, count=24)) == expected
    assert len(set(expected)) > 4


def test_a_text_ends_before_the_token_that_ends_it(model, tmp_path):
    """Whichever of several it is; what a folder says of it is read."""
    decoder = load(model, backend="cpu")
    tokens = list(generate(decoder, PROMPT, count=12))
    stop = tokens[5]
    assert list(generate(decoder, PROMPT, count=12, ending={stop, 999})) == tokens[: tokens.index(stop)]
    assert ending(model) == frozenset()
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert ending(tmp_path) == {2}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert ending(tmp_path) == {3, 4}


def test_adapters_take_turns_over_one_base(model, adapters):
    """Each prompt with its own: the text of a model that has that adapter alone, and no weight is held twice."""
    options = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]
    prompts = ["first=abc", "abc", "second=abc", "first=abc", "third=abc"]
    asked = [part for prompt in prompts for part in ("--prompt", prompt)]
    result = run(model, *options, *asked, "--tokens", 12, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["adapter"] for row in rows] == ["first", "", "second", "first", ""]
    assert rows[4]["prompt"] == "third=abc"
    words = tokenizer(model)
    ids = words.encode("abc").ids
    for row in rows[:4]:
        alone = load(model, backend="cpu")
        if row["adapter"]:
            found = peft.load(adapters[row["adapter"]])
            alone.attach(found.pattern, found.method, arrays=found.arrays)
        assert row["text"] == words.decode(list(generate(alone, ids, count=12)))
    assert len({row["text"] for row in rows[:4]}) == 3

    base = load(model, backend="cpu")
    twin, found = base.twin(), peft.load(adapters["first"])
    twin.attach(found.pattern, found.method, arrays=found.arrays)
    assert {layer.operation for layer in base.sites.values()} == {
        "nn.embedding",
        "nn.linear",
        "nn.rms_norm",
        "nn.attention",
    }
    for site, layer in base.sites.items():
        assert twin.sites[site].arrays.get("weight") is layer.arrays.get("weight")


def test_draws_are_as_frequent_as_they_are_likely():
    """Ten thousand draws of each setting, within five standard deviations; what is left out never comes."""
    logits = np.array([1.0, 3.0, 2.0, 0.0, 2.0])
    p = np.exp(logits / 2) / np.exp(logits / 2).sum()
    kept = {
        Sampling(temperature=2.0): [0, 1, 2, 3, 4],
        Sampling(temperature=2.0, top_k=2): [1, 2],
        Sampling(temperature=2.0, top_p=p[1]): [1],
        Sampling(temperature=2.0, top_p=p[1] + 2.0**-30): [1, 2],
        Sampling(temperature=2.0, top_k=3, top_p=0.5): [1, 2],
        Sampling(): [1],
    }
    for sampling, tokens in kept.items():
        left = np.isin(np.arange(5), tokens) * (p if sampling.temperature else 1.0)
        expected = left / left.sum()
        found = np.bincount(np.random.default_rng(0).choice(5, 10_000, p=sampling.probabilities(logits)), minlength=5)
        assert (np.abs(found - 10_000 * expected) <= 5 * np.sqrt(10_000 * expected * (1 - expected))).all(), sampling


def test_equal_seeds_draw_equal_texts(model):
    """Each prompt from its own stream: it says the same whatever stands beside it."""
    options = ("--temperature", 1.5, "--tokens", 16, "--json")
    (alone,) = json.loads(run(model, "--prompt", "abc", *options).stdout)
    beside = json.loads(run(model, "--prompt", "abc", "--prompt", "abc", *options).stdout)
    other = json.loads(run(model, "--prompt", "abc", "--seed", 1, *options).stdout)
    assert beside[0] == alone
    assert len({alone["text"], beside[1]["text"], other[0]["text"]}) == 3


def test_one_prompt_is_written_as_it_comes_and_a_question_in_the_models_template(model):
    """The same text as in JSON; the template is that of transformers' own tokenizer."""
    transformers = pytest.importorskip("transformers")
    for extra, text in (((), "abc"), (("--chat",), "[user] abc >")):
        options = ("--prompt", "abc", *extra, "--tokens", 8)
        (row,) = json.loads(run(model, *options, "--json").stdout)
        assert run(model, *options).stdout == row["text"] + "\n"
        words = tokenizer(model)
        assert row["text"] == words.decode(list(generate(load(model, backend="cpu"), words.encode(text).ids, count=8)))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    theirs.chat_template = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    asked = [{"role": "user", "content": "abc"}]
    assert theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "[user] abc >"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "a", "--tokens", "0"], "--tokens must be at least 1, but 0 came."),
        (["--prompt", "a", "--temperature", "-1"], "temperature must be 0 or more, but -1.0 came."),
        (["--prompt", "a", "--top-p", "0"], "top_p must be above 0 and at most 1, but 0.0 came."),
        (["--prompt", "a", "--top-k", "-1"], "top_k must be 0 or more, but -1 came."),
        (["--prompt", ""], "a continuation needs at least one token to follow, but none came."),
        (["--prompt", "a", "--adapter", "x"], "--adapter needs NAME=VALUE, but 'x' came."),
        (
            ["--prompt", "a", "--adapter", "x=nowhere"],
            "nowhere has no adapter_config.json, expected an adapter of peft.",
        ),
    ],
)
def test_what_cannot_be_continued_is_said(model, options, said):
    """One sentence, exit status 2."""
    result = run(model, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"refpeft: {said}\n"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("{{ messages[0].content.__class__.__mro__ }}", "cannot be rendered: access to attribute '__class__'"),
        ("{% for %}", "cannot be rendered: Expected an expression"),
        ("{{ raise_exception('no system role') }}", "cannot be rendered: no system role"),
        ("{{ 1 // 0 }}", "cannot be rendered: integer division"),
    ],
)
def test_a_template_cannot_do_harm(model, tmp_path, template, said):
    """It is refused in one sentence, whatever it tries."""
    folder = tmp_path / "llama"
    shutil.copytree(model, folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    result = run(folder, "--prompt", "a", "--chat")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


def test_a_gguf_files_tokenizer_goes_with_what_is_made_of_it(tmp_path):
    """As files that transformers reads: the same ids, template and end; a kind that is not read leaves none."""
    transformers, gguf = pytest.importorskip("transformers"), pytest.importorskip("gguf")
    letters = sorted(pytest.importorskip("tokenizers").pre_tokenizers.ByteLevel.alphabet())

    def written(name, kind, merges=("a b",), eos=1):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["<s>", "</s>", *letters, "ab"])
        writer.add_token_types([3, 3] + [1] * 257)
        if merges:
            writer.add_token_merges(list(merges))
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(eos)
        writer.add_chat_template("[{{ messages[0].content }}]{{ eos_token }}")
        writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
        for finish in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            finish()
        return tmp_path / name

    path, folder = written("a.gguf", "gpt2"), tmp_path / "made"
    folder.mkdir()
    for name, content in files(path).items():
        (folder / name).write_bytes(content)
    theirs, text = transformers.PreTrainedTokenizerFast.from_pretrained(folder), "cab 12 </s>ä"
    assert theirs(text).input_ids == tokenizer(path).encode(text).ids
    assert 258 in theirs(text).input_ids
    assert theirs.eos_token_id == 1
    assert ending(folder) == ending(path) == {1}
    asked = theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert asked == ask(folder, "hi") == ask(path, "hi") == "[hi]</s>"
    assert files(written("b.gguf", "llama")) == {}
    assert files(folder) == {}
    for name, broken, said in (
        ("c.gguf", {"merges": ()}, "the tokenizer lacks merges"),
        ("d.gguf", {"merges": ("a q", "zz b")}, "its tokens and merges make no tokenizer"),
        ("e.gguf", {"eos": 259}, "eos_token_id must be from 0 to 258, but 259 came"),
    ):
        with pytest.raises(FormatError, match=said):
            files(written(name, "gpt2", **broken))
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    with pytest.raises(FormatError, match="eos_token_id must be a token id or several, but '</s>' came"):
        ending(folder)


def test_wrong_settings_are_refused_where_they_are_made(model):
    """In Python as on the command line."""
    with pytest.raises(AttributeValueError, match="temperature"):
        Sampling(temperature=float("inf"))
    with pytest.raises(ShapeError, match="none came"):
        next(generate(load(model, backend="cpu"), [], count=1))


def test_a_temperature_near_zero_takes_the_likeliest():
    """However near: what is divided by it overflows to minus infinity."""
    p = Sampling(temperature=5e-324).probabilities(np.array([1.0, 3.0, 2.0], np.float32))
    np.testing.assert_array_equal(p, [0, 1, 0])

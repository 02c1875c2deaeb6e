"""``--task classification``: a classifier is trained, evaluated and taken up again, and peft loads what was learned."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from small_models import save, shaken, slopes

from refpeft.cli import main
from refpeft.errors import CapabilityError, FormatError
from refpeft.formats import adapters, safetensors
from refpeft.formats.adapter import Adapter
from refpeft.formats.lint import lint
from refpeft.methods import Houlsby, LoRA, LoRAGA, LoRAPlus
from refpeft.models import load, load_classifier, load_encoder
from refpeft.models.dropout import Dropout
from refpeft.models.head import Head, head_of
from refpeft.models.starts import gradients
from refpeft.models.tokens import tokenizer
from refpeft.training import classification, evaluation, loop, text
from refpeft.training.task import Classification

WORDS = "[PAD] [UNK] [CLS] [SEP] the a film was very plot i it good great fine bad awful dull".split()  # noqa: SIM905
GOOD, BAD = WORDS[12:15], WORDS[15:18]


def refpeft(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reviews(count: int, seed: int) -> list[dict]:
    """Texts of one to seven words, of which one says whether they are positive."""
    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        positive, others = bool(random.integers(2)), list(random.choice(WORDS[4:12], random.integers(7)))
        others.insert(int(random.integers(len(others) + 1)), random.choice(GOOD if positive else BAD))
        found.append({"text": " ".join(others), "label": "positive" if positive else "negative"})
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random encoders with a tokenizer that would pad and cut: one as it is, one without its pooler, one with three labels."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    words.enable_padding(length=16)
    words.enable_truncation(4)
    folder, names = tmp_path_factory.mktemp("encoders"), {0: "bad", 1: "good", 2: "mixed"}
    for name, kind, more in (
        ("bert", "AutoModel", {}),
        ("three", "AutoModelForSequenceClassification", {"id2label": names}),
    ):
        config = transformers.BertConfig(
            vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=24, **more,
        )  # fmt: skip
        save(config, folder / name, kind)
        words.save(str(folder / name / "tokenizer.json"))
    transformers.BertModel.from_pretrained(folder / "bert", add_pooling_layer=False).save_pretrained(folder / "bare")
    words.save(str(folder / "bare" / "tokenizer.json"))
    lines(folder / "train.jsonl", reviews(64, 0))
    lines(folder / "test.jsonl", reviews(24, 1))
    return folder


def training(folder, out, model="bert", **changes):
    """The command line of a small run."""
    options = {"data": folder / "train.jsonl", "out": out, "steps": 30, "batch": 8, "lr": 0.01} | changes
    given = (part for name, value in options.items() for part in (f"--{name}", value))
    return ["train", folder / model, "--task", "classification", *given]


def test_lora_ga_starts_from_the_gradient_of_the_labels_loss(folder, tmp_path):
    """That of transformers, in the mean over batches with padding; an encoder without labels has none."""
    torch, transformers = (pytest.importorskip(n) for n in ("torch", "transformers"))
    lines(tmp_path / "train.jsonl", [row | {"label": i % 3} for i, row in enumerate(reviews(8, 0))])
    found = classification.examples(tmp_path / "train.jsonl")
    texts = classification.labelled("", found, ("bad", "good", "mixed"), tokenizer(folder / "three"), 16)
    batches, site = [texts[range(5)], texts[range(5, 8)]], "layers.1.attn.q"
    model = load_classifier(folder / "three", labels=3, train=())
    given = [dict(zip(("ids", "mask"), some.padded)) | {"labels": some.labels} for some in batches]
    ours = gradients(model, [site], given)[site]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "three").double()
    for its in given:
        made = {"input_ids": its["ids"], "attention_mask": its["mask"].astype(int), "labels": its["labels"]}
        (theirs(**{name: torch.tensor(array) for name, array in made.items()}).loss / 2).backward()
    wanted = theirs.bert.encoder.layer[1].attention.self.query.weight.grad.numpy()
    assert np.linalg.norm(ours - wanted) <= 1e-5 * np.linalg.norm(wanted)
    model.attach(site, LoRAGA(rank=2), np.random.default_rng(0), batches=given)
    with pytest.raises(
        CapabilityError, match="of a loss, which an encoder has as a classifier only, of batches with lab"
    ):
        model.attach(site, LoRAGA(rank=2), np.random.default_rng(0), batches=[given[0]["ids"]])


def test_what_a_classifiers_adapters_cost_is_counted(folder, tmp_path):
    """Their arrays and the head that comes with them; merged, a whole model with its head, of the same loss. A model that has a
    classifier has a row of its own.
    """
    for name, method in (("lora", LoRA(rank=2)), ("houlsby", Houlsby())):
        model = load_classifier(folder / "three", labels=3, train=("classifier",))
        model.attach("layers.*.attn.q" if name == "lora" else "*", method, np.random.default_rng(0))
        shaken(model, np.random.default_rng(1))
        adapters.save(tmp_path / name, Adapter(method, model.arrays(), family="bert", head=model.head))
    lines(tmp_path / "texts.jsonl", [row | {"label": i % 3} for i, row in enumerate(reviews(9, 0))])
    given = [part for name in ("lora", "houlsby") for part in ("--adapter", tmp_path / name)]
    asked = evaluating(folder, *given, "--cost", "--rounds", 6, "--json", model="three", data=tmp_path / "texts.jsonl")
    result = refpeft(*asked)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["adapter"] for row in rows] == [
        "", f"{tmp_path / 'lora'}", f"{tmp_path / 'lora'}, merged", f"{tmp_path / 'houlsby'}"
    ]  # fmt: skip
    head, whole = (
        3 * 32 + 3,
        sum(a.size for a in safetensors.load(folder / "three" / "model.safetensors").tensors.values()),
    )
    houlsby = 4 * (2 * 32 * 2 + 2 + 32)
    assert [row["bytes"] for row in rows] == [0, 4 * (2 * 2 * 64 + head), 4 * whole, 4 * (houlsby + head)]
    assert rows[1]["loss"] == pytest.approx(rows[2]["loss"], rel=1e-5)
    assert rows[1]["loss"] != pytest.approx(rows[0]["loss"], rel=1e-3)
    assert {row["context"] for row in rows} == {0}


def test_a_rate_that_is_given_goes_before_the_models(folder, tmp_path):
    """Losses are those of a model whose configuration has that rate; without one they are others, of the model's own rates."""
    shutil.copytree(folder / "bert", tmp_path / "bert")
    stated = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(stated | {"hidden_dropout_prob": 0.4}))
    options = ["--task", "classification", "--data", folder / "train.jsonl", "--steps", 3, "--batch", 8, "--json"]
    losses = []
    for number, (model, given) in enumerate(
        (("own", ()), ("given", ("--hidden-dropout", 0.4)), ("stated", ()), ("none", ("--hidden-dropout", 0)))
    ):
        where = tmp_path / "bert" if model == "stated" else folder / "bert"
        result = refpeft("train", where, *options, *given, "--out", tmp_path / str(number))
        assert result.exit_code == 0, result.output
        losses.append((tmp_path / str(number) / "metrics.jsonl").read_text())
    steps = [[json.loads(line)["loss"] for line in text.splitlines()] for text in losses]
    assert steps[1] == steps[2]
    assert len({tuple(each) for each in steps}) == 3
    for given, said in (
        (("--hidden-dropout", 1), "the hidden dropout must be from 0 and below 1, but 1.0 came."),
        (("--hidden-dropout", 0, "--task", "language"), "--hidden-dropout needs --task classification."),
    ):
        result = refpeft("train", folder / "bert", *options, *given, "--out", tmp_path / "refused")
        assert (result.exit_code, said in result.stderr) == (2, True)


@pytest.mark.parametrize("method", ["lora_ga", "eva", "corda"])
def test_a_classifier_is_trained_from_a_start_that_sees_its_texts(folder, tmp_path, method):
    """What is kept is for the base as it was."""
    trained = refpeft(*training(folder, tmp_path / "run", method=method, rank=4, steps=60), "--json")
    assert trained.exit_code == 0, trained.output
    (row,) = json.loads(trained.stdout)
    assert row["last"] < row["first"]
    made = ("--adapter", tmp_path / "run" / "adapter", "--json")
    (ours,) = json.loads(refpeft(*evaluating(folder, *made, data="train.jsonl")).stdout)
    assert ours["loss"] < row["first"]


def evaluating(folder, *more, model="bert", data="test.jsonl"):
    return ["evaluate", folder / model, "--task", "classification", "--data", folder / data, *more]


@pytest.mark.parametrize(
    ("model", "method", "backend"), [("bert", "lora", "cpu"), ("bare", "lora", "cpu"), ("bert", "hra", "torch")]
)
def test_a_classifier_is_trained_and_peft_has_its_loss_accuracy_and_predictions(
    folder, tmp_path, model, method, backend
):
    """On texts that it was not trained on; a pooler that the encoder has not is trained and goes with the adapter."""
    torch, peft, transformers = (pytest.importorskip(n) for n in ("torch", "peft", "transformers"))
    more = {"method": method, "backend": backend, "targets": "all-linear"}
    trained = refpeft(*training(folder, tmp_path / "run", model, steps=60, **more), "--json")
    assert trained.exit_code == 0, trained.output
    (row,) = json.loads(trained.stdout)
    assert row["last"] < row["first"]
    made = tmp_path / "run" / "adapter"
    arguments = ("--adapter", made, "--predictions", tmp_path / "said.jsonl", "--batch", 5, "--backend", backend)
    (ours,) = json.loads(refpeft(*evaluating(folder, *arguments, "--json", model=model)).stdout)
    commoner = max(
        np.mean([example["label"] == name for example in reviews(24, 1)]) for name in ("positive", "negative")
    )
    assert (ours["texts"], ours["accuracy"] > commoner) == (24, True)
    labels = json.loads((made / "labels.json").read_text())
    assert labels == {"id2label": {"0": "negative", "1": "positive"}}
    names = dict(enumerate(labels["id2label"].values()))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder / model, id2label=names)
    theirs = peft.PeftModel.from_pretrained(base, made).eval()
    assert theirs.peft_config["default"].task_type == peft.TaskType.SEQ_CLS
    assert set(adapters.load(made).head) == ({"pooler", "classifier"} if model == "bare" else {"classifier"})
    words, losses, said = tokenizer(folder / model), [], (tmp_path / "said.jsonl").read_text().splitlines()
    for example, line in zip(reviews(24, 1), map(json.loads, said), strict=True):
        with torch.no_grad():
            logits = theirs(input_ids=torch.tensor([words.encode(example["text"]).ids])).logits[0].double()
        likely = torch.softmax(logits, 0).numpy()
        assert line == example | {"predicted": line["predicted"], "probabilities": line["probabilities"]}
        np.testing.assert_allclose([*line["probabilities"].values()], likely, rtol=0, atol=2.0**-17)
        assert line["predicted"] == names[int(logits.argmax())]
        losses.append(-np.log(likely[[*names.values()].index(example["label"])]))
    assert abs(np.mean(losses) - ours["loss"]) < 2.0**-16
    assert np.mean([json.loads(line)["predicted"] == json.loads(line)["label"] for line in said]) == ours["accuracy"]
    assert not [finding for finding in lint(made) if finding.severity != "note"]


@pytest.mark.parametrize("method", ["lora", "eva"])
def test_an_interrupted_run_goes_on_to_the_same_bits(folder, tmp_path, method):
    """Head and adapter, whatever the lengths of the texts in a step."""

    def run(out: Path, stops: int):
        """Stopped behind a step, as by Ctrl-C."""

        def advance(step, loss):
            if step == stops:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            train = loop.train
            patch.setattr(loop, "train", lambda *given, **more: train(*given[:-1], advance, **more))
            options = {"method": method, "steps": 4, "dropout": 0.1, "start-batches": 2}
            return refpeft(*training(folder, out, **options)).exit_code

    assert [run(tmp_path / "whole", 0), *(run(tmp_path / "stopped", stops) for stops in (1, 3, 0))] == [0, 130, 130, 0]
    whole, stopped = (tmp_path / name / "adapter" for name in ("whole", "stopped"))
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in stopped.iterdir()}
    again = refpeft(*training(folder, tmp_path / "stopped", method=method, steps=4, dropout=0.1))
    assert "holds another run: start_batches is 2 there, but 8" in " ".join(again.stderr.split())


def sweeping(folder, out, model="bert", **changes):
    """The command line of a small sweep."""
    options = {"model": folder / model, "data": folder / "train.jsonl", "out": out, "method": "lora,ia3", "rank": "1,2"}
    options |= {"seeds": 2, "steps": 6, "batch": 8, "lr": 0.02, "held-out": 0.3} | changes
    return ["sweep", "--task", "classification", *(p for name, value in options.items() for p in (f"--{name}", value))]


def test_a_sweep_says_of_every_run_what_evaluate_says_of_its_adapter(folder, tmp_path):
    """On texts that are held out, in order; beside them is who says the commonest label. What is missing is done again, alike."""
    pytest.importorskip("matplotlib")
    out = tmp_path / "sweep"
    result = refpeft(*sweeping(folder, out), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "sweep.json").read_text())
    texts = (folder / "train.jsonl").read_text().splitlines()
    held = sorted(np.random.default_rng(0).permutation(64)[:20])
    (tmp_path / "held.jsonl").write_text("\n".join(texts[i] for i in held))
    runs = ["lora-rank1-seed0", "lora-rank1-seed1", "lora-rank2-seed0", "lora-rank2-seed1", "ia3-seed0", "ia3-seed1"]
    given = [part for name in runs for part in ("--adapter", out / "runs" / name / "adapter")]
    evaluated = json.loads(refpeft(*evaluating(folder, *given, "--json", data=tmp_path / "held.jsonl")).stdout)
    assert [row["texts"] for row in evaluated] == [20] * 6
    for row, ours in zip(evaluated, found["runs"], strict=True):
        assert row["accuracy"] == ours["accuracy"]
        assert abs(row["loss"] - ours["loss"]) < 2.0**-20
    head, lora, ia3 = 2 * 32 + 2, 2 * 2 * (32 + 32), 2 * 2 * 32
    assert [row["trained"] for row in found["runs"]] == [head + n for n in (lora, lora, 2 * lora, 2 * lora, ia3, ia3)]

    means = [np.mean([row["accuracy"] for row in found["runs"][i : i + 2]]) for i in (0, 2, 4)]
    assert [point["accuracy"] for point in found["points"]] == means
    assert all(p["accuracy_low"] <= p["accuracy"] <= p["accuracy_high"] for p in found["points"])
    labels = [json.loads(line)["label"] for line in texts]
    trained = [label for i, label in enumerate(labels) if i not in held]
    common = max(set(trained), key=trained.count)
    assert found["base"]["method"] == "commonest label"
    assert found["base"]["accuracy"] == np.mean([labels[i] == common for i in held])
    shares = [trained.count(labels[i]) / len(trained) for i in held]
    assert found["base"]["loss"] == pytest.approx(-np.mean(np.log(shares)), rel=1e-12)
    assert json.loads(result.stdout) == [found["base"], *found["points"]]
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")

    whole = (out / "sweep.json").read_bytes()
    for name in ("sweep.json", "runs/lora-rank2-seed1/row.json"):
        (out / name).unlink()
    assert refpeft(*sweeping(folder, out)).exit_code == 0
    assert (out / "sweep.json").read_bytes() == whole
    other = refpeft(*sweeping(folder, out, labels="positive,negative"))
    assert other.exit_code == 2
    assert "holds another sweep: labels is ['negative', 'positive'] there, but ['positive', 'neg" in other.output


def test_a_classifiers_adapter_as_lora_brings_its_head(folder, tmp_path):
    """What IA3 changed in matrices and biases is refused, its matrices alone are LoRA; the classifier and its labels go along."""
    options = ["--task", "classification", "--data", folder / "train.jsonl", "--steps", 3, "--batch", 8]
    trained = refpeft(
        "train", folder / "bert", *options, "--method", "ia3", "--targets", "q", "--out", tmp_path / "run"
    )
    assert trained.exit_code == 0, trained.output
    given = ["extract", folder / "bert", "--adapter", tmp_path / "run" / "adapter", "--out", tmp_path / "lora"]
    refused = refpeft(*given)
    assert refused.exit_code == 2
    assert "but the adapter also changes the bias of layers.0.attn.q and 1 more" in refused.stderr
    assert refpeft(*given, "--matrices-only").exit_code == 0
    before, after = (adapters.load(where) for where in (tmp_path / "run" / "adapter", tmp_path / "lora"))
    assert isinstance(after.method, LoRA)
    assert after.labels == before.labels == ("negative", "positive")
    for name, array in before.head["classifier"].items():
        np.testing.assert_array_equal(after.head["classifier"][name], array)
    for site, arrays in before.arrays.items():
        weight = load_encoder(folder / "bert", dtype="float64", backend="reference").weight(site)
        change = after.arrays[site]["b"].astype(float) @ after.arrays[site]["a"]
        np.testing.assert_allclose(
            weight + change, np.asarray(arrays["scale"])[:, None] * weight, rtol=0, atol=2.0**-20
        )


def test_a_model_that_has_a_classifier_is_what_its_sweep_is_beside(folder, tmp_path):
    """As it is, before training."""
    rows = [row | {"label": i % 3} for i, row in enumerate(reviews(20, 0))]
    data = lines(tmp_path / "a.jsonl", rows)
    task = Classification.of(folder / "three", data)
    trained, held = task.parted(data, tokenizer(folder / "three"), 128, 0.25)
    assert (len(trained), len(held), task.head) == (15, 5, ("classifier",))
    name, scores = task.base(folder / "three", trained, held, 2, backend="cpu", quantise=None)
    kept = lines(tmp_path / "held.jsonl", [rows[i] for i in sorted(np.random.default_rng(0).permutation(20)[:5])])
    (ours,) = json.loads(refpeft(*evaluating(folder, "--json", model="three", data=kept)).stdout)
    assert name == "untrained"
    assert scores == {"loss": pytest.approx(ours["loss"], rel=1e-6), "accuracy": ours["accuracy"]}


def test_padding_changes_nothing(folder):
    """Losses and accuracy of batches of any size, and of texts alone, but for rounding in float64."""
    rows = labelled(folder, folder / "train.jsonl")
    model = load_classifier(folder / "bert", labels=2, random=np.random.default_rng(0), dtype="float64", backend="cpu")
    alone = evaluation.classified(model, rows, 1)
    assert len({len(text) for text in rows.texts}) > 3
    for batch in (7, 64):
        found = evaluation.classified(model, rows, batch)
        np.testing.assert_allclose(found.probabilities, alone.probabilities, rtol=0, atol=2.0**-45)
        assert found.accuracy == alone.accuracy
    ids, mask = rows.padded
    loss, _ = model.loss(ids, rows.labels, mask)
    assert abs(loss - alone.loss) < 2.0**-45


def labelled(folder, path, names=("negative", "positive"), length=128):
    return classification.labelled(path, classification.examples(path), names, tokenizer(folder / "bert"), length)


def test_gradients_are_differences_under_dropout_too(folder):
    """What is dropped is drawn for the step and the site; another step has another loss."""
    rows = labelled(folder, folder / "test.jsonl")[range(6)]
    random = np.random.default_rng(1)
    model = load_classifier(folder / "bert", labels=2, random=random, dtype="float64", backend="reference")
    model.attach("*.q,*.down", LoRA(rank=2), random)
    for array in model.trained.values():
        array += 0.2 * random.normal(size=array.shape)
    ids, mask = rows.padded

    def loss(step=3):
        return model.loss(ids, rows.labels, mask, dropout=Dropout(0.3, 0, step))

    slope, difference = slopes(model.trained, loss()[1], lambda: loss()[0], np.random.default_rng(2))
    assert abs(slope - difference) < 1e-6 * abs(slope)
    assert loss(4)[0] != loss()[0] != model.loss(ids, rows.labels, mask)[0]


def test_the_head_learns_at_the_rate_of_the_run(folder, tmp_path):
    """Adam's first step is as long as the rate, whatever the method says of its own arrays."""
    model = load_classifier(folder / "three", train=("classifier",), backend="cpu")
    before = {n: a.copy() for n, a in model.head["classifier"].items()}
    settings = loop.Settings(steps=1, batch=8, lr=0.01, schedule="constant")
    rows = labelled(folder, folder / "train.jsonl", ("negative", "positive", "mixed"))
    loop.train(model, LoRAPlus(rank=2), "*.q", rows, settings, tmp_path / "run", {})
    for name, array in adapters.load(tmp_path / "run" / "adapter").head["classifier"].items():
        np.testing.assert_allclose(np.abs(array - before[name]), 0.01, rtol=2.0**-8)


def test_labels_are_the_models_or_those_of_the_data_or_those_that_are_given(folder, tmp_path):
    """By name or by number, in the order in which the classifier has them."""
    assert head_of(folder / "three") == Head(("pooler", "classifier"), ("bad", "good", "mixed"))
    assert head_of(folder / "bert") == Head(("pooler",), ())
    assert head_of(folder / "bare") == Head((), ())
    numbers = lines(tmp_path / "numbers.jsonl", [{"text": "good", "label": 1}, {"text": "dull film", "label": 0}])
    mixed = lines(tmp_path / "mixed.jsonl", [{"text": "good", "label": "good"}, {"text": "dull film", "label": 0}])
    for model, data, more, names in (
        ("three", mixed, {}, ["bad", "good", "mixed"]),
        ("three", numbers, {"labels": "x,y,z"}, ["x", "y", "z"]),
        ("bert", numbers, {}, ["LABEL_0", "LABEL_1"]),
        ("bert", mixed, {"labels": "dull,good,fine"}, ["dull", "good", "fine"]),
    ):
        out = tmp_path / f"{model}-{data.stem}"
        result = refpeft(*training(folder, out, model, data=data, steps=1, **more))
        assert result.exit_code == 0, result.output
        assert list(adapters.load(out / "adapter").labels) == names
        said = tmp_path / f"{out.name}.said"
        arguments = ("--adapter", out / "adapter", "--predictions", said, "--data", data)
        assert refpeft(*evaluating(folder, *arguments, model=model)).exit_code == 0
        for line in map(json.loads, said.read_text().splitlines()):
            assert list(line["probabilities"]) == names
            assert type(line["predicted"]) is type(line["label"])
    (row,) = json.loads(refpeft(*evaluating(folder, "--json", "--data", mixed, model="three")).stdout)
    assert (row["adapter"], row["texts"]) == ("", 2)


def test_texts_without_labels_are_predicted_alike(folder, tmp_path):
    """Where predictions are asked for: there is no loss then, and no accuracy; but a file has labels or it has none."""
    run = tmp_path / "run"
    assert refpeft(*training(folder, run, steps=2)).exit_code == 0
    lines(tmp_path / "bare.jsonl", [{"text": example["text"]} for example in reviews(24, 1)])
    said = {}
    for name in (folder / "test.jsonl", tmp_path / "bare.jsonl"):
        arguments = ("--adapter", run / "adapter", "--predictions", tmp_path / f"{name.stem}.said", "--json")
        result = refpeft(*evaluating(folder, *arguments, data=name))
        assert result.exit_code == 0, result.output
        said[name.stem] = [*map(json.loads, (tmp_path / f"{name.stem}.said").read_text().splitlines())]
    (row,) = json.loads(result.stdout)
    assert (row["loss"], row["accuracy"], row["texts"]) == (None, None, 24)
    assert [{n: v for n, v in line.items() if n != "label"} for line in said["test"]] == said["bare"]
    some = lines(tmp_path / "some.jsonl", [{"text": "good", "label": "positive"}, {"text": "bad"}])
    refused = refpeft(*evaluating(folder, "--adapter", run / "adapter", "--predictions", tmp_path / "no", data=some))
    assert (refused.exit_code, (tmp_path / "no").exists()) == (2, False)
    assert "line 2 must be a JSON object with a text and a label" in " ".join(refused.stderr.split())


def test_a_tokenizers_file_does_not_say_how_long_a_text_is(folder):
    """It neither pads nor cuts; --sequence does, with the special tokens kept."""
    words = tokenizer(folder / "bert")
    assert words.encode("the film was very very good").ids == [2, 4, 6, 7, 8, 8, 12, 3]
    rows = labelled(folder, folder / "train.jsonl", length=5)
    assert (rows.longest, {text[-1] for text in rows.texts}) == (5, {3})


def test_a_line_of_a_file_ends_at_a_newline_alone(tmp_path):
    """JSON may hold any of the other separators of lines that Unicode has."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\u2028and\x85the same", "label": 0}\n{"text": "two", "label": 1}')
    assert [example.text for example in classification.examples(path)] == ["one\u2028and\x85the same", "two"]
    assert list(text.documents(path)) == ["one\u2028and\x85the same", "two"]


def test_wrong_runs_are_refused_in_a_sentence(folder, tmp_path, tiny_llama):
    """Exit status 2, and nothing is begun."""
    data = {
        name: lines(tmp_path / f"{name}.jsonl", rows)
        for name, rows in {
            "empty": [],
            "none": [{"text": "good"}],
            "bool": [{"text": "good", "label": True}],
            "number": [{"text": "good", "label": 0.5}],
            "half": [{"text": "good \ud800", "label": "x"}],
            "half-label": [{"text": "good", "label": "\ud800"}],
            "one": [{"text": "good", "label": "x"}] * 2,
            "both": [{"text": "good", "label": "x"}, {"text": "bad", "label": 1}],
            "gap": [{"text": "good", "label": 0}, {"text": "bad", "label": 2}],
            "strange": [{"text": "good", "label": "positive"}, {"text": "bad", "label": "neutral"}],
        }.items()
    }
    shutil.copy(folder / "train.jsonl", tmp_path / "train.txt")
    run, new = tmp_path / "run", tmp_path / "new"
    assert refpeft(*training(folder, run, steps=1)).exit_code == 0
    adapter = ("--adapter", run / "adapter")
    for arguments, said in (
        (training(folder, run, steps=1), "holds this run, complete; name a new folder to train again"),
        (training(folder, run, steps=1, labels="positive,negative"), "holds another run: labels is ['negative', 'pos"),
        (training(folder, new, data=data["empty"]), "empty.jsonl has no line, expected texts with labels"),
        (training(folder, new, data=data["none"]), "line 1 must be a JSON object with a text and a label, its name or"),
        (training(folder, new, data=data["bool"]), "line 1 must be a JSON object with a text and a label"),
        (training(folder, new, data=data["number"]), "line 1 must be a JSON object with a text and a label"),
        (training(folder, new, data=data["half"]), "line 1 must be a JSON object with a text and a label"),
        (training(folder, new, data=data["half-label"]), "line 1 must be a JSON object with a text and a label"),
        (training(folder, new, data=data["one"]), "all texts have the label 'x', expected two labels at least"),
        (training(folder, new, data=data["both"]), "must be all names or all numbers, but 'x' and 1 came"),
        (training(folder, new, data=data["gap"]), "labels must be numbers from 0 on, none left out, unless"),
        (
            training(folder, new, data=tmp_path / "train.txt"),
            "must be a .jsonl file of objects with a text and a label",
        ),
        (training(folder, new, labels="a"), "labels must be two different ones at least, but a came"),
        (training(folder, new, labels="a,b,a"), "labels must be two different ones at least, but a, b, a came"),
        (training(folder, new, model="three"), "of line 1 is 'positive', expected one of bad, good, mixed, or its num"),
        (training(folder, new, model="three", labels="negative,positive"), "has 3 labels, but 2 are asked for"),
        (training(folder, new, head="pooler"), "has no classifier, so that --head must name it, but pooler came"),
        (training(folder, new, head="score"), "train must be of pooler, classifier, but 'score' came"),
        (training(folder, new, sequence=2), "a text must have room for more than its 2 special tokens, but 2 came"),
        (training(folder, new, method="prompt", tokens=17), "bert has positions for 24 tokens, but 26 came"),
        (training(folder, new, task="language"), "is an encoder, which predicts no tokens: with --task classification"),
        (training(folder, new, model=tiny_llama), "is a decoder, expected an encoder"),
        (["train", folder / "bert", "--data", "x", "--out", new, "--head", "pooler"], "--head needs --task classific"),
        (sweeping(folder, new, data=data["one"]), "all texts have the label 'x', expected two labels at least"),
        (sweeping(folder, new, **{"held-out": 0.999}), "has 64 texts, all of them held out, expected one at least to"),
        (sweeping(folder, new, head="pooler"), "has no classifier, so that --head must name it, but pooler came"),
        (sweeping(folder, new, model=tiny_llama), "is a decoder, expected an encoder"),
        ([*sweeping(folder, new, labels="a,b"), "--task", "language"], "--labels needs --task classification"),
        (evaluating(folder, *adapter, data=data["none"]), "line 1 must be a JSON object with a text and a label"),
        (evaluating(folder), "bert has no classifier, and no adapter brings one"),
        (evaluating(folder, *adapter, model="bare"), "bare has no pooler, and"),
        (evaluating(folder, *adapter, model="three"), "classifier has the arrays"),
        (evaluating(folder, *adapter, data=data["strange"]), "of line 2 is 'neutral', expected one of negative, posit"),
        (evaluating(folder, *adapter, "--predictions", tmp_path / "train.txt"), "train.txt exists already"),
        (evaluating(folder, *adapter, *adapter, "--predictions", new), "--predictions are of one adapter, but 2 came"),
        (evaluating(folder, *adapter, "--predictions", new / "x"), "cannot be written because the folder"),
        (["evaluate", folder / "bert", "--data", "x", "--predictions", new], "--predictions needs --task classificat"),
    ):
        result = refpeft(*arguments)
        assert result.exit_code == 2, result.output
        assert said in " ".join(result.output.split()), result.output
        assert not new.exists()


def test_what_labels_are_called_is_believed_only_where_it_fits(folder, tmp_path):
    """In a model's configuration and beside an adapter; and a model of another kind of problem is not taken for a classifier."""
    model = tmp_path / "model"
    shutil.copytree(folder / "three", model)
    config = json.loads((model / "config.json").read_text())
    for change, error, said in (
        ({"id2label": {"0": "a", "1": "b"}}, FormatError, "id2label must name the 3 labels of its classifier"),
        ({"id2label": {"0": "a", "1": "b", "2": 3}}, FormatError, "id2label must name the 3 labels"),
        (
            {"problem_type": "regression"},
            CapabilityError,
            "problem_type is 'regression', but single_label_classification",
        ),
    ):
        (model / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(error, match=said):
            load_classifier(model)
    assert refpeft(*training(folder, tmp_path / "run", steps=1)).exit_code == 0
    beside = tmp_path / "run" / "adapter" / "labels.json"
    for content in ("{}", '{"id2label": {"0": "a"}}', '{"id2label": ["a", "b"]}'):
        beside.write_text(content)
        with pytest.raises(FormatError, match=re.escape("labels.json: id2label must name the 2 labels")):
            adapters.load(beside.parent)


def test_what_a_model_cannot_read_is_refused_before_a_run_begins(tiny_llama, tmp_path):
    """Tokens that are none of a language model's, too: another model's tokenizer stood beside it."""
    model = load(tiny_llama, backend="cpu")
    ids = np.full((3, 9), model.shape.vocabulary)
    with pytest.raises(Exception, match="token ids lie from 0 to 255, but 256 to 256 came"):
        loop.train(model, LoRA(rank=2), "*.q", ids, loop.Settings(steps=1), tmp_path / "run", {})
    assert not (tmp_path / "run").exists()

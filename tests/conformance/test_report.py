"""The report: one readable page, whatever the certificate says."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from refpeft_conformance import certificate, plot, report, terminal

VOID = {"meta", "br", "path", "rect"}


def check(operation, dtype="float32", kind="rounded", claim="outputs within budget", verdict="PASS", **fields):
    """One record of a certificate."""
    record = {"id": f"{operation}-{dtype}-{kind}-{claim}", "operation": operation, "dtype": dtype, "kind": kind}
    record |= {"claim": claim, "verdict": verdict, "message": "", "examples": 3, "elements": 30, "vacuous": 0}
    return (
        record
        | {"near": 0, "worst_share": 0.25, "worst_ulps": 1.0, "explanation": [], "outside": {}, "counted": {}}
        | fields
    )


def example(record, **fields):
    """A counterexample of a check."""
    found = {
        "check": record["id"],
        "file": f"counterexamples/{record['id']}.safetensors",
        "sha256": "",
        "minimal": True,
    }
    found |= {"message": record["message"], "explanation": [], "dims": {"i": 2, "n": [], "o": 3}}
    return found | {"attributes": {"scaling": 2.0}} | fields


def certified(records, **fields):
    """A certificate of these checks."""
    precision = {"storage": "float32", "accumulation": "float32", "operands": None, "splits": 1}
    content = {
        "refpeft": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "subject": {
            "backend": "chip",
            "name": "chip",
            "command": "",
            "fault": "",
            "device": "cpu",
            "versions": {"chiplib": "3.1"},
            "deterministic": True,
            "frozen": {},
            "precision": {"float32": precision | {"flush_to_zero": False, "elementary_ulps": 2.0}},
            "source": {r["operation"]: "own" for r in records},
        },
        "environment": {"python": "3.12", "numpy": "2.0", "system": "Linux", "machine": "x86_64"},
        "plan": {"operations": "*", "only": "", "profile": "quick", "seed": 0, "weights": "", "timeout": 300.0},
        "spec": {"pages": "0" * 64, "must_pass": "0" * 64},
        "undeclared": [],
        "unselected": [],
        "unknown": [],
        "training": {"declared": False, "trainable": [], "known": ["train.lora"]},
        "reference": {"PASS": 5, "run": 5, "expected": 5},
        "remembered": 0,
        "merging": {},
        "smoke": [{"operation": "a.b", "dtype": "float32", "fault": "scaling lost", "caught_by": "a.b-fp32-exact-x"}],
        "saved": [],
        "counterexamples": [],
        "checks": records,
        "seal": "0" * 64,
    } | fields
    return content | certificate.summary(content)


def rendered(records, **fields):
    return report.render(certified(records, **fields))


class Balance(HTMLParser):
    """Collects tags that are closed in another order than they were opened."""

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong, self.regions = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        if tag == "svg":
            self.regions.append(dict(attributes).get("aria-label"))

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def failed(operation="lora.linear", **fields):
    return check(operation, verdict="FAIL", worst_share=40.0, message="y[0]: expected 2, got 1", **fields)


def test_the_headline_says_how_many_operations_and_the_verdict():
    """In the title too, for a tab or a list of files."""
    page = rendered([check("toy.one"), check("toy.two"), failed("toy.three")])
    assert "<title>chip: 2 of 3 operations · refpeft certificate</title>" in page
    assert re.search(r'class="headline">2 of 3 operations <span class="badge bad">FAIL<', page)
    assert re.search(r'class="headline">1 of 1 operations <span class="badge good">PASS<', rendered([check("toy.one")]))


def test_operations_stand_under_their_family():
    """toy.linear and toy.merge under toy, with the family's own counts."""
    families = report._families(certified([check("toy.linear"), failed("toy.merge"), check("game.play")]))
    assert [(f["name"], f["passed"], len(f["operations"])) for f in families] == [("game", 1, 1), ("toy", 1, 2)]
    assert families[1]["checks"] == {"passed": 1, "run": 2}


def test_a_hundred_operations_are_collapsed_but_for_failing_families():
    """A few stand open all."""
    few = rendered([check(f"toy{i}.linear") for i in range(5)])
    assert few.count('<details class="family" open>') == 5
    many = rendered([check(f"toy{i}.linear") for i in range(100)] + [failed()])
    assert many.count('<details class="family">') == 100
    assert many.count('<details class="family" open>') == 1


def test_each_claim_shows_its_share_in_each_dtype():
    """A check that is not supported shows no share, and why it is not."""
    reason = "the backend declares it forward only"
    page = rendered(
        [
            check("toy.one", worst_share=0.5),
            check("toy.one", "float64", worst_share=0.125),
            check("toy.one", claim="gradients", verdict="UNSUPPORTED", message=reason, worst_share=0.0),
        ]
    )
    row = page[page.index('<th scope="row">outputs within budget') :].split("</tr>")[0]
    assert re.findall(r"0\.\d+", row) == ["0.125", "0.500"]
    assert f"Not supported: {reason}." in page


def test_a_counterexample_comes_with_the_command_that_replays_it():
    """First the one that a single fault explains; all others are there too."""
    first, second = failed(claim="outputs equal"), failed(claim="gradients equal")
    examples = [example(first), example(second, explanation=["scaling lost"])]
    page = rendered([first, second], counterexamples=examples)
    assert f'<pre class="replay">refpeft replay {examples[1]["file"]}</pre>' in page
    assert "within the budget of fault “scaling lost”, and of no other" in page
    assert "i = 2, n = (), o = 3, scaling = 2.0" in page
    assert f'<code class="replay">refpeft replay {examples[0]["file"]}</code>' in page


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "1 check of lora.linear failed."),
        ({"reference": {"PASS": 4, "run": 5, "expected": 5}}, "The reference passed only 4 of its 5 checks."),
        ({"saved": [{"file": "old.safetensors", "fails": "y is wrong"}]}, "old.safetensors still fails: y is wrong"),
        (
            {"smoke": [{"operation": "a.b", "dtype": "float32", "fault": "NaN swallowed", "caught_by": ""}]},
            "No check caught the fault “NaN swallowed” made to a.b in float32.",
        ),
    ],
)
def test_a_page_that_is_no_pass_says_why(fields, says):
    """Failing checks, an unsound harness, earlier counterexamples: one sentence each."""
    page = rendered([failed()], **fields)
    assert says in page
    assert 'class="why"' in page
    assert 'class="why"' not in rendered([check("toy.one")])


def test_an_error_and_a_vacuous_operation_are_reasons_too():
    """The first line of the message; the operation's name."""
    page = rendered(
        [
            check("toy.one", verdict="ERROR", message="the harness failed: OSError\nTraceback"),
            check("toy.two", vacuous=29),
        ]
    )
    assert "could not be judged: the harness failed: OSError<" in page
    assert "Too many budgets say nothing in toy.two." in page


def test_vacuous_budgets_on_subnormal_inputs_count_unless_the_backend_declares_to_flush_them():
    """Declared, they are no reason against it; vacuous budgets on other inputs still are."""
    subnormal, random = (
        check("toy.one", claim="outputs within budget on subnormal inputs", vacuous=29),
        check("toy.two"),
    )
    flushing = certified([subnormal, random])
    assert flushing["vacuous_over_limit"] == ["toy.one"]
    flushing["subject"]["precision"]["float32"]["flush_to_zero"] = True
    assert certificate.summary(flushing)["vacuous_over_limit"] == []
    flushing["checks"].append(check("toy.one", vacuous=29))
    assert certificate.summary(flushing)["vacuous_over_limit"] == ["toy.one"]


def test_what_merging_costs_has_a_table():
    """A row for each method and dtype; a dash where the method cannot be unmerged. Without figures there is no section."""
    cost = {"update": 0.36, "apart": 1.6e-3, "lost": 4.7e-3, "restored": 0.8, "residue": 1.2e-3}
    costs = {"lora": {"bfloat16": cost}, "dora": {"float32": cost | {"restored": None, "residue": None}}}
    page = rendered([check("lora.merge")], merging=costs)
    rows = re.findall(r'<th scope="row"><code>(?:lora|dora)</code></th>.*', page)
    assert ["1.6e-03" in row and "4.7e-03" in row for row in rows] == [True, True]
    assert "1.2e-03" in rows[0] and "-</td>" in rows[1]
    assert "What merging costs" not in rendered([check("lora.merge")])


def test_what_others_wrote_is_escaped():
    """A message, a fault's name and a backend's name are text, not markup."""
    evil = "<script>alert(1)</script>"
    record = failed(claim=evil)
    page = rendered([record | {"message": evil}], counterexamples=[example(record, message=evil, explanation=[evil])])
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_is_well_formed_and_its_pictures_are_described():
    """Every tag is closed where it belongs; every plot says in words what it shows."""
    record = failed()
    page = Balance(rendered([record, check("nf4.quantize", worst_share=0.0)], counterexamples=[example(record)]))
    assert (page.open, page.wrong) == ([], [])
    assert "Shares of the budget used by 1 check: the largest is 40." in page.regions
    assert "Shares of the budget used by 0 checks: none has a budget to use." in page.regions


def test_larger_shares_lie_further_right_and_failures_beyond_the_line():
    """On a logarithmic scale from 1e-4 to 1; infinity is still on the picture."""
    shares = [1e-9, 1e-4, 1e-3, 0.5, 1.0, 1.0000001, 40.0, 1e9, math.inf]
    places = [float(re.search(r"M(\S+) ", str(plot.dots([s], ""))).group(1)) for s in shares]
    assert places == sorted(places)
    assert places[4] == plot.WHOLE < places[5]
    assert places[-1] < plot.BEYOND
    assert [place for place, _ in plot.axis()] == sorted(place for place, _ in plot.axis())


def test_a_dot_for_each_share_and_a_bar_for_each_bin():
    """Zeros have neither; what fails is drawn apart."""
    shares = [0.0, 0.5, 0.5, 0.01, 7.0]
    dots, bars = str(plot.dots(shares, "")), str(plot.histogram(shares, ""))
    assert [d.count("M") for d in re.findall(r'class="dots \w+" d="([^"]+)"', dots)] == [3, 1]
    assert [d.count("M") for d in re.findall(r'class="bars \w+" d="([^"]+)"', bars)] == [2, 1]
    assert "<path class=" not in str(plot.dots([0.0], "")).replace('<path class="whole"', "")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (0.1234, "0.123"), (41.2, "41"), (3114.4, "3,114"), (3.2864e15, "3.3e+15"), (math.inf, "∞")],
)
def test_shares_have_three_digits_at_most(number, text):
    """Small ones as fractions, large ones without."""
    assert report._share(number) == text


def test_a_check_that_the_reference_fails_is_named(capsys, tmp_path):
    """On the page and in the terminal: whoever reads it can ask for that check alone."""
    content = certified(
        [check("toy.one")], reference={"PASS": 4, "run": 5, "expected": 5, "failed": ["a.b-fp64-laws-x"]}
    )
    terminal.certificate(content, tmp_path)
    assert "the reference does not pass a.b-fp64-laws-x" in capsys.readouterr().out
    assert "The reference does not pass a.b-fp64-laws-x." in report.render(content)

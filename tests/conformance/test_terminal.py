"""What is seen of a certification while it runs."""

from types import SimpleNamespace

from refpeft_conformance import terminal


def test_a_long_run_without_a_terminal_says_how_far_it_is(capsys, monkeypatch):
    """A log gets a line an interval on standard error, nothing before one has passed, and standard output stays empty."""
    clock = iter((0.0, 10.0, 70.0, 80.0))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    bar = terminal.ProgressBar("certifying chip")
    for done in (1, 2, 3):
        bar.update(done, 9, "")
    assert capsys.readouterr() == ("", "certifying chip: 2 of 9 steps\n")

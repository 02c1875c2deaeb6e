"""What the kit brings to the ``refpeft`` program. Importing this imports neither Hypothesis nor pytest."""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_commands():
    """certify, verify, replay and faults."""
    from refpeft_conformance import commands

    return [commands.certify, commands.verify, commands.replay, commands.faults]


@hookimpl
def refpeft_diagnose(problem, outputs):
    """Names of the faults whose results on the reference these outputs are, within budget."""
    from refpeft_conformance.diagnose import diagnose

    return diagnose(problem, outputs)

"""The process backend: any program that speaks safetensors over standard input and output, in any language.

`refpeft_process.backend.ProcessBackend` runs one; ``docs/protocol.md`` is what the program must do. Without ``--command``, the
program named by the environment variable ``REFPEFT_COMMAND`` is the backend ``process``.
"""

import os

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """The process backend's light description; no program is started for it."""
    from refpeft_process.backend import ProcessBackend

    return [ProcessBackend(os.environ.get("REFPEFT_COMMAND", ""))]

"""The process backend: any program that speaks safetensors over standard input and output, in any language.

`ProcessBackend` runs one; ``docs/protocol.md`` is what the program must do. Without ``--command``, the program named by
the environment variable ``REFPEFT_COMMAND`` is the backend ``process``.
"""

import os

from refpeft.plugins import hookimpl
from refpeft_process.backend import ProcessBackend

__all__ = ["ProcessBackend"]


@hookimpl
def refpeft_backends():
    """The process backend's light description; no program is started for it."""
    return [ProcessBackend(os.environ.get("REFPEFT_COMMAND", ""))]

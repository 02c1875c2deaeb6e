"""refpeft: the executable specification of parameter-efficient fine-tuning.

Every method written once in plain NumPy with its gradient derived by hand beside it, and a kit that certifies any other
implementation against it.

What stands here is imported when it is first asked for: the program's help takes no NumPy.
"""

import importlib
from typing import TYPE_CHECKING

from refpeft.errors import RefpeftError

if TYPE_CHECKING:
    from refpeft.comparison import assert_conforms, oracle
    from refpeft.operation import catalogue
    from refpeft.problem import Problem

__version__ = "0.1.0"
__all__ = ["Problem", "RefpeftError", "assert_conforms", "catalogue", "oracle"]

_HOMES = {
    "Problem": "refpeft.problem",
    "assert_conforms": "refpeft.comparison",
    "catalogue": "refpeft.operation",
    "oracle": "refpeft.comparison",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""refpeft: the executable specification of parameter-efficient fine-tuning.

Every method written once in plain NumPy with its gradient derived by hand beside it, and a kit that certifies any other
implementation against it.
"""

from refpeft.errors import RefpeftError
from refpeft.operation import catalogue, operation
from refpeft.oracle import assert_conforms, oracle
from refpeft.problem import Problem

__version__ = "0.1.0"
__all__ = ["Problem", "RefpeftError", "assert_conforms", "catalogue", "operation", "oracle"]

"""What can go wrong, as one small hierarchy.

Each error is one full sentence that names the operation or file, the argument, what was expected and what came.
On the command line every one of them ends the program with exit status 2.
"""


class RefpeftError(ValueError):
    """The base of every error that refpeft raises on purpose."""


class ShapeError(RefpeftError):
    """An array's shape contradicts the signature or another array."""


class DtypeError(RefpeftError):
    """An array has a dtype that the signature does not admit there."""


class AttributeValueError(RefpeftError):
    """An attribute is unknown, missing, of the wrong type or outside its domain."""


class DomainError(RefpeftError):
    """Values lie outside what an operation is defined on (a NaN weight, an index out of range)."""


class FormatError(RefpeftError):
    """A file or message is truncated, malformed or hostile."""


class CapabilityError(RefpeftError):
    """A backend, device or operation cannot do what was asked of it."""


class PluginError(RefpeftError):
    """A plugin is missing, broken or not what it says it is."""

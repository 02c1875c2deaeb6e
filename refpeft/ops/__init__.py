"""The operations, one file per family: mathematics first, forward and vjp adjacent."""

"""Words that several families use."""


def rows(x):
    """(*n, k) as a matrix (prod(n), k): every vector of a batch a row."""
    count = 1
    for size in x.shape[:-1]:
        count *= size
    return x.reshape(count, x.shape[-1])


def plus(y, bias):
    """``y + bias``, or ``y`` where there is none."""
    return y if bias is None else y + bias


def turned(x):
    """Each matrix of a stack transposed: (*n, i, j) as (*n, j, i)."""
    return x.transpose(*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)

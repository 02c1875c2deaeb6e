"""Hugging Face's peft and bitsandbytes as backends, wrapped thinly so that they can be certified.

Their layers, their autograd, their merges, their kernels: nothing is corrected on the way, so that what fails is theirs. What
they do not take at all is declared (`refpeft.backend.Implementation.outside`) and printed in the certificate; what they get wrong
fails, and stands in ``docs/findings``. Importing this package, or listing backends, imports none of them.
"""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """Light descriptions of the two, and of peft apart from what is known."""
    from refpeft_hf.backend import BitsandbytesBackend, PeftApartBackend, PeftBackend

    return [PeftBackend(), PeftApartBackend(), BitsandbytesBackend()]

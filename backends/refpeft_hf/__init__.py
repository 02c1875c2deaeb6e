"""Hugging Face's peft and bitsandbytes and AdapterHub's adapters as backends, wrapped thinly so that they can be certified.

Their layers, their autograd, their merges, their kernels: nothing is corrected on the way, so that what fails is theirs. What
they do not take at all is declared (`refpeft.backend.Implementation.outside`) and printed in the certificate; what they get wrong
fails, and stands in ``docs/findings``. Importing this package, or listing backends, imports none of them.
"""

from refpeft.plugins import hookimpl


@hookimpl
def refpeft_backends():
    """Light descriptions of the three, and of peft and adapters apart from what is known."""
    from refpeft_hf.backend import (
        AdaptersApartBackend,
        AdaptersBackend,
        BitsandbytesBackend,
        PeftApartBackend,
        PeftBackend,
    )

    return [PeftBackend(), PeftApartBackend(), AdaptersBackend(), AdaptersApartBackend(), BitsandbytesBackend()]

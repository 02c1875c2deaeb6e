"""What refpeft is told about peft, AdapterHub's adapters and bitsandbytes before they are imported."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import replace

from refpeft.backend import withholding
from refpeft_torch.backend import TorchBackend


class _Library(TorchBackend):
    """A library on top of torch, on the CPU."""

    family: str
    package: str
    extra = "hf"

    def unavailable(self):
        for package in ("torch", self.package):
            if package not in sys.modules and importlib.util.find_spec(package) is None:
                return f"{package} is not installed; pip install 'refpeft[{self.extra}]' brings it."
        return None

    def devices(self):
        return ("cpu",)

    def versions(self):
        return {package: importlib.metadata.version(package) for package in (self.package, "torch")}

    @functools.cached_property
    def _implementations(self):
        from refpeft_hf.declared import implementations

        return implementations(self.family)


class PeftBackend(_Library):
    """peft's layers, called with the problem's tensors as their parameters."""

    name = package = "peft"
    summary = "Hugging Face peft: its own layers, autograd and merges"
    family = "refpeft_hf.methods"


class _Apart(_Library):
    """A library without the calls that ``docs/findings`` covers: what is right apart from them."""

    known: str

    @functools.cached_property
    def _implementations(self):
        from refpeft_hf.declared import first
        from refpeft_hf.findings import covered, lacking

        known = importlib.import_module(self.known)

        def apart(name, found):
            frozen = known.FROZEN.get(name, ())
            vjp = withholding(found.vjp, frozen) if frozen else found.vjp
            return replace(
                found,
                vjp=vjp,
                outside=first(found.outside, covered(name, known.COVERED)),
                lacks=lacking(name, known.LACKING),
                contiguous=known.CONTIGUOUS.get(name, ""),
                frozen=frozen,
            )

        return {name: apart(name, found) for name, found in super()._implementations.items()}


class PeftApartBackend(_Apart, PeftBackend):
    """peft apart from what is known of it."""

    name = "peft-apart"
    summary = "peft apart from the calls that docs/findings covers"
    known = "refpeft_hf.findings"


class AdaptersBackend(_Library):
    """AdapterHub's layers, called with the problem's tensors as their parameters."""

    name = package = "adapters"
    summary = "AdapterHub's adapters: its own layers, autograd and merges"
    family = "refpeft_hf.adapterhub"
    extra = "adapterhub"


class AdaptersApartBackend(_Apart, AdaptersBackend):
    """adapters apart from what is known of it."""

    name = "adapters-apart"
    summary = "AdapterHub's adapters apart from the calls that docs/findings covers"
    known = "refpeft_hf.adapterhub_findings"


class BitsandbytesBackend(_Library):
    """bitsandbytes' functional interface."""

    name = package = "bitsandbytes"
    summary = "bitsandbytes: its own 4-bit and blockwise kernels for the CPU"
    family = "refpeft_hf.quantization"

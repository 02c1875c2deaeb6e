"""How each method stands in peft's files: a row for each reading that peft has of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refpeft.methods import Method
from refpeft.methods.adalora import AdaLoRA
from refpeft.methods.beft import BEFT
from refpeft.methods.boft import BOFT
from refpeft.methods.c3a import C3A
from refpeft.methods.deft import DEFT, PaRa
from refpeft.methods.delora import DeLoRA
from refpeft.methods.dora import DoRA
from refpeft.methods.fourierft import FourierFT
from refpeft.methods.frod import FRoD
from refpeft.methods.glora import GLoRA
from refpeft.methods.gralora import GraLoRA
from refpeft.methods.hira import HiRA
from refpeft.methods.hra import HRA, HRAGramSchmidt
from refpeft.methods.ia3 import IA3
from refpeft.methods.layer_norm import LayerNormTuning
from refpeft.methods.lily import Lily
from refpeft.methods.loha import LoHa
from refpeft.methods.lokr import DenseLoKr, LoKr, LowRankLoKr
from refpeft.methods.lora import LoRA, RsLoRA
from refpeft.methods.miss import BatMiSS, MiSS
from refpeft.methods.oft import OFT
from refpeft.methods.osf import OSF
from refpeft.methods.peanut import PEANuT
from refpeft.methods.poly import Poly
from refpeft.methods.prefix import AdaptionPrompt
from refpeft.methods.randlora import RandLoRA
from refpeft.methods.road import RoAd
from refpeft.methods.shira import SHiRA
from refpeft.methods.supertuning import Supertuning, Supra
from refpeft.methods.trainable_tokens import TrainableTokens
from refpeft.methods.vector_banks import TinyLoRA, UniLoRA, VBLoRA
from refpeft.methods.vera import PVeRA, VeRA
from refpeft.methods.waveft import WaveFT

Shape = tuple[int, ...]
Sizes = Callable[[Any], Shape]


class Layout(NamedTuple):
    """One method, as peft writes it.

    Attributes
    ----------
    method : type
    kind : str
        peft's type.
    tensors : mapping of str to str
        Our name of an array, and peft's of the tensor in a module.
    fields : mapping of str to str
        peft's field, and ours of the method.
    theirs : mapping of str to object
        Fields of peft that say it is this one.
    ours : mapping of str to object
        Fields of the method that peft has no other reading of.
    shapes : mapping of str to (shape, shape)
        An array's shape there and here, where they differ, or a function from the method to it; -1 is what is left.
    since : tuple of int
        peft's version from which on the reading is this one.
    input_first : bool
        Whether peft puts it on matrices that are stored as (i, o) too, as GPT-2's are.
    absent : mapping of str to callable
        What a field that is null stands for, from the configuration.
    said : mapping of str to object
        Fields that are written, and read whatever they are: what they decide shows in the tensors, or is over with training.
    zeros : mapping of str to callable
        Tensors of zeros that are there too, and their shapes from the arrays of a site.
    stored : mapping of str to str
        The dtype of an array there, where integers differ.
    unlike : callable
        From a method and the arrays of a site, why peft would make others of the same numbers; "" where it would not.
    common : mapping of str to str
        Our name of an array that all modules share, and peft's, see `refpeft.formats.peft_shared`.
    numbered : mapping of str to str
        Our name of a module's array, and peft's of those of all, see `refpeft.formats.peft_numbered`.
    misread : str
        Why peft computes something else than what it is given, so that nothing is written; "" where it does not.
    """

    method: type[Method]
    kind: str
    tensors: Mapping[str, str]
    fields: Mapping[str, str]
    theirs: Mapping[str, Any] = {}
    ours: Mapping[str, Any] = {}
    shapes: Mapping[str, tuple[Shape | Sizes, Shape | Sizes]] = {}
    since: tuple[int, ...] = ()
    input_first: bool = False
    absent: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {}
    said: Mapping[str, Any] = {}
    zeros: Mapping[str, Callable[[Mapping[str, Any]], Shape]] = {}
    stored: Mapping[str, str] = {}
    unlike: Callable[[Any, Mapping[str, Any]], str] = lambda method, arrays: ""
    common: Mapping[str, str] = {}
    numbered: Mapping[str, str] = {}
    misread: str = ""

    def shaped(self, ours: str, array: np.ndarray, method: Method, there: bool) -> np.ndarray:
        """An array in the shape that it has there, or here."""
        if ours not in self.shapes:
            return array
        shape = self.shapes[ours][0 if there else 1]
        return array.reshape(shape(method) if callable(shape) else shape)

    def writes(self, method: Method) -> bool:
        """Whether the method is this one."""
        return type(method) is self.method and all(getattr(method, n) == v for n, v in self.ours.items())

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether the configuration is of this one; a field that it lacks is as good as false, or as an empty list."""
        return config.get("peft_type") == self.kind and all(
            (config.get(n) or False) == (v or False) for n, v in self.theirs.items()
        )


def version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """peft's version that wrote a configuration, as far as it is numbers."""
    found = re.match(r"\d+(\.\d+)*", str(config.get("peft_version") or ""))
    return tuple(map(int, found[0].split("."))) if found else ()


_LORA = {"a": "lora_A.weight", "b": "lora_B.weight"}
_DORA = _LORA | {"magnitude": "lora_magnitude_vector"}
_LOHA = {n: f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
_RANK, _SCALED = {"r": "rank"}, {"r": "rank", "lora_alpha": "alpha"}
_DELORA = {"a": "delora_A", "b": "delora_B", "boundary": "delora_lambda", "norms": "delora_w_norm"}
_NORM = {n: f"ln_tuning_layers.{n}" for n in ("weight", "bias")}
_COLUMN = {"scale": ((-1, 1), (-1,))}
_DIAGONAL = {"a": "lora_A", "e": "lora_E", "b": "lora_B"}
_FILLED = {"subspace": "deft_P", "fill": "deft_R"}
_SPARSE = {"values": "supertuning_values", "places": "supertuning_indices"}
_SUPRA = _SPARSE | {"a": "supertuning_lora_A.weight", "b": "supertuning_lora_B.weight"}
_CHOSEN = {"sparsity": "sparsity", "select_top": "largest"}
_SCALES = {
    "scale_left": "glora_A.Xd",
    "scale_right": "glora_A.Xu",
    "shift_left": "glora_B.Xd",
    "shift_right": "glora_B.Xu",
}
_BLOCKS = {"block_a": "gralora_A", "block_b": "gralora_B"}
_BESIDE = {"general_a": "gralora_A_general.weight", "general_b": "gralora_B_general.weight"}
_GRANULAR = {"r": "rank", "alpha": "alpha", "gralora_k": "blocks"}
_TOWER = {"first": "peanut_A.weight", "last": "peanut_B.weight"}
_KRONECKER = {"r": "rank", "alpha": "alpha", "decompose_factor": "factor"}
_SPECTRUM = {"n_frequency": "frequencies", "scaling": "scaling", "random_loc_seed": "seed"}
_WAVES = {"n_frequency": "coefficients", "scaling": "scaling", "random_loc_seed": "seed", "wavelet_family": "wavelet"}
_MIXED = {"a": "tinylora_A", "b": "tinylora_B", "projections": "tinylora_P"}
_BANK = {"r": "rank", "num_vectors": "bank", "vector_length": "length", "topk": "chosen"}
_PLACES = {"index_a": "unilora_indices_A", "index_b": "unilora_indices_B"}
_DEALT = _PLACES | {"scale_a": "unilora_scales_A", "scale_b": "unilora_scales_B"}
_TRIPLETS = {n: f"osf_svd_params.{n.upper()}_low" for n in "usv"}
_INTERCONNECTED = {"a": "lily_A.weight", "b": "lily_B.weight", "router": "lily_router.weight"}
_SKILLS = {"r": "rank", "n_skills": "skills", "n_splits": "heads", "n_tasks": "tasks"}
_ROUTED = {"a": "poly_lora_A", "b": "poly_lora_B", "logits": "poly_router.module_logits"}
_VECTORS = {"r": "rank", "d_initial": "start"}
_TURNED = {"oft_block_size": "block", "block_share": "share"}
_SERIES = _TURNED | {"num_cayley_neumann_terms": "terms"}


def _kronecker(*factors: str) -> dict[str, str]:
    return {factor: f"lokr_{factor}" for factor in factors}


def _second_dense(method: LoKr, arrays: Mapping[str, Any]) -> str:
    """peft keeps a factor whole where half of its larger side is at most the rank."""
    larger = max(len(arrays["w2_a"]), arrays["w2_b"].shape[1])
    return f"keeps a second factor of side {larger} whole at rank {method.rank}" if 2 * method.rank >= larger else ""


def _second_low(method: DenseLoKr, arrays: Mapping[str, Any]) -> str:
    larger = max(arrays["w2"].shape)
    return f"makes a second factor of side {larger} of rank {method.rank}" if 2 * method.rank < larger else ""


def _either_dense(method: LowRankLoKr, arrays: Mapping[str, Any]) -> str:
    first = max(len(arrays["w1_a"]), arrays["w1_b"].shape[1])
    whole = f"keeps a first factor of side {first} whole at rank {method.rank}" if 2 * method.rank >= first else ""
    return whole or _second_dense(method, arrays)  # type: ignore[arg-type]


def _narrower(method: DEFT, arrays: Mapping[str, Any]) -> str:
    """peft scales by alpha over the rank that a layer has, which is at most its outputs."""
    own = arrays["subspace"].shape[1]
    return f"scales a subspace of {own} by alpha / {own}, not / {method.rank}" if own < method.rank else ""


def _own_places(method: FourierFT, arrays: Mapping[str, Any]) -> str:
    """peft draws them, where they have not been left out as those that the method implies."""
    return f"draws places from the seed {method.seed} and keeps none" if "places" in arrays else ""


def _own_wavelet(method: WaveFT, arrays: Mapping[str, Any]) -> str:
    """See docs/findings/peft-waveft-wavelets.md."""
    if method.wavelet in ("coif4", "coif5"):
        return f"has filters of its own by the name {method.wavelet}"
    return _own_places(method, arrays)  # type: ignore[arg-type]


def _fewer_elements(method: SHiRA, arrays: Mapping[str, Any]) -> str:
    """peft trains r (o + i) elements, or refuses."""
    k, indices = len(arrays["values"]), np.asarray(arrays.get("indices", ()))
    if indices.shape != (2, k):
        return "keeps a row and a column for each value"
    o, i = 1 + indices.max(axis=1, initial=-1)
    return f"refuses rank {method.rank} for {o} by {i} elements" if k == o * i < method.rank * (o + i) else ""


def _single(method: Lily, arrays: Mapping[str, Any]) -> str:
    return "refuses a single B" if method.experts == 1 else ""


def _own_part(method: OSF, arrays: Mapping[str, Any]) -> str:
    """peft decomposes the base weight, which it does not where the layer's was quantised again; and it freezes something."""
    if set(method.following) & set(arrays):
        return "takes the frozen part from the base weight and keeps none"
    nothing = len(arrays["s"]) == min(len(arrays["u"]), arrays["v"].shape[1])
    return "freezes one singular triplet at least" if nothing else ""


def _other_mixture(method: TinyLoRA, arrays: Mapping[str, Any]) -> str:
    """Of a weight's singular vectors there are no more than its smaller side."""
    rank = min(method.rank, len(arrays["b"]), arrays["a"].shape[1])
    made, came = (method.numbers, rank, rank), arrays["projections"].shape
    return f"makes projections of the shape {made}, not {came}" if came != made else ""


LAYOUTS = (
    Layout(LoRA, "LORA", _LORA, _SCALED, {"use_rslora": False, "use_dora": False}, input_first=True),
    Layout(RsLoRA, "LORA", _LORA, _SCALED, {"use_rslora": True, "use_dora": False}, input_first=True),
    Layout(DoRA, "LORA", _DORA, _SCALED, {"use_rslora": False, "use_dora": True}, input_first=True),
    Layout(LoHa, "LOHA", _LOHA, {"r": "rank", "alpha": "alpha"}),
    Layout(IA3, "IA3", {"scale": "ia3_l"}, {}, {"feedforward_modules": False}, {"side": "output"}, _COLUMN, input_first=True),
    Layout(HRA, "HRA", {"u": "hra_u"}, _RANK, {"apply_GS": False}),
    Layout(HRAGramSchmidt, "HRA", {"u": "hra_u"}, _RANK, {"apply_GS": True}),
    Layout(HiRA, "HIRA", {"a": "hira_A", "b": "hira_B"}, _RANK, input_first=True),
    Layout(RoAd, "ROAD", {"theta": "road_theta", "alpha": "road_alpha"}, {"variant": "variant", "group_size": "group"}),
    Layout(C3A, "C3A", {"kernel": "c3a_kernel"}, {"block_size": "block"}, {}, {"normalised": True}),
    Layout(OFT, "OFT", {"skew": "oft_R.weight"}, _SERIES, {"use_cayley_neumann": True}, {"variant": "neumann"}, since=(0, 18)),
    Layout(OFT, "OFT", {"skew": "oft_R.weight"}, _TURNED, {"use_cayley_neumann": False}, {"variant": "peft", "terms": 5}),
    Layout(MiSS, "MISS", {"block": "miss_block"}, _RANK, {"init_weights": True}, {"mini": 0}),
    Layout(BatMiSS, "MISS", {"block": "miss_block"}, _RANK, {"init_weights": "bat"}),
    Layout(DeLoRA, "DELORA", _DELORA, {"r": "rank", "delora_lambda": "boundary"}, {}, {"floor": 1e-4}, {"boundary": ((1,), ())}),
    Layout(AdaLoRA, "ADALORA", _DIAGONAL, {"init_r": "rank", "lora_alpha": "alpha"}, {}, {"variant": "peft"},
           {"e": ((-1, 1), (-1,))}, said={"total_step": 1, "r": 8}),
    Layout(LoKr, "LOKR", _kronecker("w1", "w2_a", "w2_b"), _KRONECKER, {"decompose_both": False}, unlike=_second_dense),
    Layout(DenseLoKr, "LOKR", _kronecker("w1", "w2"), _KRONECKER, {"decompose_both": False}, unlike=_second_low),
    Layout(LowRankLoKr, "LOKR", _kronecker("w1_a", "w1_b", "w2_a", "w2_b"), _KRONECKER, {"decompose_both": True},
           unlike=_either_dense),
    Layout(BOFT, "BOFT", {"q": "boft_R", "scale": "boft_s"}, {"boft_block_size": "block"},
           {"boft_block_num": False, "boft_n_butterfly_factor": 1}, {"variant": "peft", "factors": 1}, _COLUMN),
    Layout(BEFT, "BEFT", {"shift": "beft_bias"}, {}, shapes={"shift": ((1, -1), (-1,))}),
    Layout(DEFT, "DEFT", _FILLED, {"r": "rank", "alpha": "alpha"}, {"decomposition_method": "relu", "para": False},
           input_first=True, absent={"alpha": lambda config: config["r"]}, unlike=_narrower),
    Layout(GLoRA, "GLORA", _SCALES, _RANK, {"config_A_B": "lora"}, said={"config_C": "none", "config_D_E": "none"},
           zeros={"glora_C.zeros": lambda its: (its["scale_right"].shape[1], 1),
                  **dict.fromkeys(("glora_D.zeros", "glora_E.zeros"), lambda its: (len(its["scale_left"]),))}),
    Layout(PaRa, "DEFT", {"subspace": "deft_P"}, _RANK, {"decomposition_method": "relu", "para": True}, input_first=True),
    Layout(GraLoRA, "GRALORA", _BLOCKS, _GRANULAR, {"hybrid_r": 0}, {"hybrid": 0}),
    Layout(GraLoRA, "GRALORA", _BLOCKS | _BESIDE, _GRANULAR | {"hybrid_r": "hybrid"}),
    Layout(PEANuT, "PEANUT", _TOWER, {"r": "rank", "scaling": "scaling"}, {"depth": 0, "act_fn": "relu"}, {"depth": 0}),
    Layout(SHiRA, "SHIRA", {"values": "shira_weight", "indices": "shira_indices"}, {"r": "rank", "mask_type": "mask"},
           stored={"indices": "int32"}, unlike=_fewer_elements),
    Layout(Supertuning, "SUPERTUNING", _SPARSE, _CHOSEN, {"save_precomputed_indices": True, "r": None},
           stored={"places": "int32"}),
    Layout(Supra, "SUPERTUNING", _SUPRA, _CHOSEN | _SCALED, {"save_precomputed_indices": True},
           absent={"lora_alpha": lambda config: 2 * config["r"]}, stored={"places": "int32"}),
    Layout(FourierFT, "FOURIERFT", {"values": "fourierft_spectrum"}, _SPECTRUM, {"init_weights": False}, {"start": "normal"},
           input_first=True, unlike=_own_places),
    Layout(FourierFT, "FOURIERFT", {"values": "fourierft_spectrum"}, _SPECTRUM, {"init_weights": True}, {"start": "zero"},
           input_first=True, unlike=_own_places),
    Layout(WaveFT, "WAVEFT", {"values": "waveft_spectrum"}, _WAVES, {"use_idwt": True}, input_first=True,
           said={"proportional_parameters": False}, unlike=_own_wavelet),
    Layout(TrainableTokens, "TRAINABLE_TOKENS", {"trained": "trainable_tokens_delta"}, {"token_indices": "tokens"}),
    Layout(VeRA, "VERA", {n: f"vera_{n}" for n in ("lambda_d", "lambda_b")}, _VECTORS, said={"save_projection": True},
           input_first=True, common={"a": "vera_A", "b": "vera_B"}),
    Layout(PVeRA, "PVERA", {n: f"pvera_{n}" for n in ("lambda_d", "lambda_b")}, _VECTORS, said={"save_projection": True},
           input_first=True, common={"a": "pvera_A", "b": "pvera_B"}),
    Layout(RandLoRA, "RANDLORA", {"lambdas": "randlora_lambda", "gammas": "randlora_gamma"},
           {"r": "rank", "randlora_alpha": "alpha"}, {}, {"variant": "peft"}, said={"save_projection": True},
           input_first=True, common={"base_a": "randlora_A", "base_b": "randlora_B"}),
    Layout(VBLoRA, "VBLORA", {"logits_a": "vblora_logits_A", "logits_b": "vblora_logits_B"}, _BANK,
           {"save_only_topk_weights": False}, input_first=True, common={"vectors": "vblora_vector_bank"}),
    Layout(UniLoRA, "UNILORA", _DEALT, {"r": "rank", "theta_d_length": "length", "proj_seed": "seed"}, input_first=True,
           said={"save_indices": True}, common={"theta": "unilora_theta_d"}, stored=dict.fromkeys(_PLACES, "int64")),
    Layout(Lily, "LILY", _INTERCONNECTED, {"r": "rank", "num_B": "experts", "stride_A": "stride", "scaling": "scaling"}, {}, {},
           {"b": (lambda m: (m.experts * m.rank, -1), lambda m: (m.experts, m.rank, -1))}, unlike=_single),
    Layout(AdaptionPrompt, "ADAPTION_PROMPT", {"prompt": "adaption_prompt", "gate": "adaption_gate"},
           {"adapter_len": "tokens", "adapter_layers": "adapted"}, {}, {"gates": "layer"},
           {"prompt": (lambda m: (1, m.tokens, -1), lambda m: (m.tokens, -1)), "gate": ((1,), (1,))},
           said={"target_modules": "self_attn"}),
    Layout(FRoD, "FROD", {"diagonal": "frod_lambda_l", "sparse": "frod_lambda_s_values"},
           {"sparse_rate": "rate", "regularization_alpha": "ridge"}, said={"save_projection": True}, input_first=True,
           misread="computes U over a basis of its own when it loads, whatever basis the file has"),
    Layout(Poly, "POLY", _ROUTED, _SKILLS, {"poly_type": "poly"}, {},
           {"logits": (lambda m: (m.tasks, m.heads * m.skills), lambda m: (m.tasks, m.heads, m.skills))}),
    Layout(OSF, "OSF", _TRIPLETS, {"effective_rank": "preserved"}, absent={"effective_rank": lambda config: 0.5},
           unlike=_own_part),
    Layout(TinyLoRA, "TINYLORA", _MIXED, {"r": "rank", "u": "numbers"}, {"weight_tying": 0.0}, said={"save_projection": True},
           input_first=True, numbered={"v": "tinylora_v"}, unlike=_other_mixture),
    Layout(LayerNormTuning, "LN_TUNING", _NORM, {}),
)  # fmt: skip
"""Every reading, each told from the others of its type by ``theirs``."""


def written(method: Method) -> Layout | None:
    """The layout of a method, if peft's files have one for it."""
    return next((layout for layout in LAYOUTS if layout.writes(method)), None)


def read(config: Mapping[str, Any], tensors: Iterable[str] = ()) -> Layout | None:
    """The layout that a configuration is of, if it is known; where that leaves several, the one with these tensors."""
    found, names = [layout for layout in LAYOUTS if layout.reads(config)], set(tensors)
    return next((layout for layout in found if set(layout.tensors.values()) == names), found[0] if found else None)

"""What is known of peft's types, a row each: what their files leave out, where they start, which factors they hold."""

from __future__ import annotations

import re

RANKED = ("LORA", "LOHA", "HIRA", "DELORA")
"""Those whose factors' inner size is ``r``, or what ``rank_pattern`` says of the module."""

WHOLE = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE", "XLORA", "SHADOW")
"""Those whose tensors belong to no module."""

PAIRS = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora_embedding_A", "lora_embedding_B"),
    ("hira_A", "hira_B"),
    ("delora_A", "delora_B"),
    ("hada_w1_b", "hada_w1_a"),
    ("hada_w2_b", "hada_w2_a"),
)
"""Factors (r, i) and (o, r) that are multiplied."""

FACTOR = (
    r"((?:lora_|lora_embedding_|hira_|delora_|gralora_|hada_w\d_|lokr_w\d_|peanut_|poly_lora_|tinylora_|vblora_logits_)"
    r"|(?:vera_|pvera_|randlora_))([ABab])(\.weight|_topk_\w+)?"
)
"""An array that is nothing without the other of its pair: the same name with B for A."""

NAMED = re.compile(r"(lora_[AB])\.(\w+)(\.weight)")
"""LoRA's factors with an adapter's name in them."""

DRAWN = {
    "VERA": ("vera_A", "the projections are drawn from projection_prng_key", "save_projection true"),
    "PVERA": ("pvera_A", "the projections are drawn from projection_prng_key", "save_projection true"),
    "RANDLORA": ("randlora_A", "the bases are drawn from projection_prng_key", "save_projection true"),
    "TINYLORA": ("tinylora_P", "the projections are drawn from projection_seed", "save_projection true"),
    "FROD": ("", "U is computed over a basis that peft decomposes the base for when it loads", ""),
    "UNILORA": (
        "unilora_indices",
        "the places are drawn by NumPy from proj_seed, in the order of modules",
        "save_indices true",
    ),
    "SUPERTUNING": ("supertuning_indices", "the places are found in the base weight", "save_precomputed_indices true"),
    "SHIRA": ("shira_indices", "the places are drawn from random_seed", ""),
    "FOURIERFT": ("", "the places are those of torch.randperm with random_loc_seed, as refpeft draws them too", ""),
    "WAVEFT": ("", "the places are those of torch.randperm with random_loc_seed, as refpeft draws them too", ""),
    "PSOFT": ("", "the factors are the SVD of the base weight, which libraries of linear algebra turn differently", ""),
    "OSF": (
        "",
        "the frozen part is of the base weight's larger singular triplets, as refpeft takes it too",
        "",
    ),
}
"""Of peft's types: an array that says all is in the file, what happens otherwise, and what peft has against it."""

FOLLOWED = ("FOURIERFT", "WAVEFT", "OSF")
"""Those of them that refpeft draws or computes as peft does, so that nothing is lost between the two."""

STARTS = {
    "pissa": ("warning", "peft decomposes the weight again when it loads, others do not"),
    "olora": ("warning", "peft decomposes the weight again when it loads, others do not"),
    "loftq": ("warning", "peft quantises the weight again when it loads, others do not"),
    "corda": ("error", "peft loads it only after preprocess_corda with the same data, others not at all"),
    "lora_ga": ("error", "peft itself does not change it when it loads, since the gradients are not there"),
}
"""How ``init_lora_weights`` begins where the start changes the base weight, and who makes the change again."""

STILL = {
    **dict.fromkeys(
        ("lora_B.weight", "lora_E", "hada_w2_b", "hira_B", "delora_B", "gralora_B", "lokr_w1", "glora_A.Xd"), 0
    ),
    **dict.fromkeys(("oft_R.weight", "boft_R", "miss_block", "vera_lambda_b", "pvera_lambda_b", "randlora_lambda"), 0),
    **dict.fromkeys(("shira_weight", "waveft_spectrum", "supertuning_values", "beft_bias", "lily_B.weight"), 0),
    "ia3_l": 1,
}
"""peft's arrays that let the base through as it is while all their elements are this."""

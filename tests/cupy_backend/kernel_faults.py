"""Mistakes that are made in CUDA, as another piece of source: each must be caught on the host shim.

By operation, and by what was done. Those of arithmetic are the kit's to find; those of the execution model the shim's.
"""


def replaced(old, new):
    """The kernel with one piece of its source replaced, where it has that piece."""
    return lambda kernel: kernel.changed(old, new) if old in kernel.source else kernel


FAULTS = {
    "nf4.quantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "the table's barrier is inside a branch": replaced(
            "midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);\n    __syncthreads();",
            "{ midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x); __syncthreads(); }",
        ),
        "blocks begin one late": replaced("= blockIdx.x * (long long)", "= (blockIdx.x + 1) * (long long)"),
        "halves swapped": replaced("element % 2 ? 0 : 4", "element % 2 ? 4 : 0"),
        "unguarded read behind the end": replaced("e < count ? widen(from[e]) : (wide)0", "widen(from[e])"),
        "unguarded block": replaced("end = whole < n ? whole : n", "end = whole"),
        "unguarded bytes": replaced("if (k + 2 * pair < end) place", "place"),
        "words where bytes are left": replaced("k + 8 <= end && ", ""),
        "unwritten last pair": replaced("k + 2 * pair < end", "k + 2 * pair + 2 < end"),
        "half a warp in the mask": replaced("0xffffffff", "0x0000ffff"),
        "one lane missing from the mask": replaced("0xffffffff", "0x7fffffff"),
        "maximum of every other lane": replaced("distance; distance /= 2", "distance > 1; distance /= 2"),
        "large blocks keep their first weights": replaced("if (k > first) load_eight", "if (false) load_eight"),
        "eight that are not aligned": replaced("count >= 8 && at_sixteen(from)", "count >= 8"),
        "no floor": replaced("fmaxf(largest, 1e-38f)", "largest"),
        "midpoints go up": replaced("v > midpoint[code] ", "v >= midpoint[code] "),
        "maximum of signed weights": replaced("fabsf((float)w[e])", "(float)w[e]"),
    },
    "nf4.dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "halves swapped in words": replaced("element % 2 ? 0 : 4", "element % 2 ? 4 : 0"),
        "halves swapped in single codes": replaced(
            "packed[element / 2] & 15 : packed[element / 2] >> 4", "packed[element / 2] >> 4 : packed[element / 2] & 15"
        ),
        "unguarded tail": replaced("if (e < count) to[e]", "to[e]"),
        "unwritten last element": replaced("if (e < count) to[e]", "if (e + 1 < count) to[e]"),
        "the first block's maximum": replaced("absmax[first >> log2_blocksize]", "absmax[0]"),
        "words that are not aligned": replaced(" && at_word(packed + first / 2)", ""),
        "a codeword left out": replaced("threadIdx.x < 16", "threadIdx.x < 15"),
    },
    "nf4.double_quantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "maximum of one warp": replaced("warp < 8", "warp < 1"),
        "unguarded read": replaced("k < m ? absmax[k] - offset[0] : 0.0f", "absmax[k] - offset[0]"),
        "unguarded tail": replaced("if (k < m) codes", "codes"),
        "no floor": replaced("fmaxf(largest, 1e-38f)", "largest"),
        "the bin below": replaced("65535.0 + 0.5", "65535.0 - 0.5"),
        "one lane missing from the mask": replaced("0xffffffff", "0x7fffffff"),
    },
    "nf4.double_dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "product and sum in one rounding": replaced(
            "codeword[codes[k]] * absmax2[k / 256] + offset[0]",
            "multiply_add(codeword[codes[k]], absmax2[k / 256], offset[0])",
        ),
        "no zero in the map": replaced("if (code == zero) return 0.0f;", ""),
        "ends from one side": replaced("if (k < (parts + 1) / 2) return", "return"),
        "unguarded tail": replaced("if (k < m) ", ""),
        "offset per block": replaced("offset[0]", "offset[k / 256]"),
    },
    "fp4.quantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "the least magnitude of E2M1": replaced("0.0625f", "1.0f"),
        "ties go up": replaced("size >= t : size > t", "size >= t : size >= t"),
        "ties go down": replaced("ties_up ? size >= t : size > t", "size > t"),
        "one zero": replaced("one_order && place == 0 ? v > 0 : negative", "negative"),
        "small numbers beside zero are -0 in both variants": replaced("one_order && place == 0", "place == 0"),
        "the floor is never stored": replaced("log2_blocksize, one_order, [", "log2_blocksize, 0, ["),
    },
    "fp4.dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "a codeword left out": replaced("threadIdx.x < 16", "threadIdx.x < 15"),
        "two's complement": replaced("m[code & 7]", "m[(code & 8 ? -code : code) & 7]"),
        "sign lost": replaced("code & 8 ? -magnitude : magnitude", "magnitude"),
        "codes in the order of magnitudes": replaced(
            "8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f", "2.0f, 3.0f, 4.0f, 6.0f, 8.0f, 12.0f"
        ),
    },
    "adam8bit.step": {
        "no barrier behind the tables": replaced("false);\n    __syncthreads();", "false);"),
        "no barrier behind the maxima": replaced("= largest;\n    __syncthreads();", "= largest;"),
        "one place for both maxima": replaced(
            "largest_of_block(second, of_warp_v)", "largest_of_block(second, of_warp_m)"
        ),
        "a thread of the last block does not come": replaced("block * 256 >= n", "k >= n"),
        "one turn": replaced("turn < TURNS", "turn < 1"),
        "unguarded reads": replaced("if (k < n) {", "{"),
        "one map": replaced("dynamic_codeword(threadIdx.x, false)", "dynamic_codeword(threadIdx.x, true)"),
        "unsigned decades one off": replaced("with_sign ? log2_parts : log2_parts - 1", "log2_parts"),
        "moments change places": replaced("with_sign[m[k]] * m_absmax", "with_sign[m[k]] * v_absmax"),
        "the old moment moves p": replaced("(float)rate * first", "(float)rate * old_first"),
        "eps under the root": replaced(
            "sqrtf(second) / (float)root + (float)eps", "sqrtf(second / (float)(root * root) + (float)eps)"
        ),
        "the second moment keeps its bias": replaced("sqrtf(second) / (float)root", "sqrtf(second)"),
        "decay lost": replaced("(float)left * p[k]", "p[k]"),
        "the first block's maximum": replaced("next_m_absmax[block] = largest_m", "next_m_absmax[0] = largest_m"),
    },
    "lora.linear": {
        "no barrier before the products": replaced("inner, columns);\n        __syncthreads();", "inner, columns);"),
        "no barrier after the products": replaced("sum);\n        __syncthreads();", "sum);"),
        "blocks of columns begin one late": replaced(
            "blockIdx.y * (long long)COLUMNS", "(blockIdx.y + 1) * (long long)COLUMNS"
        ),
        "one row short": replaced("if (row + n >= rows) continue;", "if (row + n + 1 >= rows) continue;"),
        "rows are read behind the last": replaced("row + n < rows ? row + n : rows - 1", "row + n"),
        "unguarded columns": replaced("n < rows && k < o", "n < rows"),
        "every matrix is taken for one of whole eights": replaced("if (whole)", "if (true)"),
        "columns are read behind the last": replaced("column + c < columns ? column + c : columns - 1", "column + c"),
        "no barrier before the warps' parts are added": replaced(
            "        }\n    __syncthreads();\n    if (threadIdx.x < ROWS", "        }\n    if (threadIdx.x < ROWS"
        ),
        "one warp's part": replaced("warp < WARPS", "warp < 1"),
        "unguarded tile": replaced("row + r < rows && column + c < columns ?", "row + r < rows ?"),
        "unwritten last row": replaced("n < rows && k < o", "n + 1 < rows && k < o"),
        "half a warp in the mask": replaced("0xffffffff", "0x0000ffff"),
        "half a warp is summed": replaced("int distance = 16", "int distance = 1"),
        "scaling lost": replaced("(wide)scaling * (lora_bias", "(lora_bias"),
        "the bias of the update is not scaled": replaced(
            "(wide)scaling * (lora_bias ? update + widen(lora_bias[k]) : update)",
            "(wide)scaling * update + (lora_bias ? widen(lora_bias[k]) : (wide)0)",
        ),
        "mask lost on the way back": replaced("if (kept && n < down && m < across)", "if (false)"),
        "the mask multiplies": replaced("kept[at + e] ? into[e] / (wide)keep : (wide)0", "kept[at + e] * into[e]"),
        "the last inner step is left out": replaced("k < inner; k += TILE", "k + TILE < inner; k += TILE"),
        "transposed where it is not": replaced("left_turned ? k * rows + n : n * inner + k", "n * inner + k"),
        "the last row of the batch is not summed": replaced("n < rows; n++) total", "n < rows - 1; n++) total"),
    },
    "lora.merge": {
        "unguarded columns": replaced("across, rounded", "8, rounded"),
        "unwritten last column": replaced("across, rounded", "across - 1, rounded"),
        "unguarded rows": replaced("if (n < down) store_eight", "store_eight"),
        "the last rank is left out": replaced("r - l, of_left", "r - l - 1, of_left"),
        "no barrier before the sums": replaced("}\n        __syncthreads();\n", "}\n"),
        "no barrier after the sums": replaced("sum[n][m]);\n        __syncthreads();\n", "sum[n][m]);\n"),
        "scaling twice": replaced("sum[n][m] *= (wide)scaling", "sum[n][m] *= (wide)scaling * (wide)scaling"),
        "left transposed": replaced("left + n * r + l, r - l", "left + l * rows + n, rows - n"),
        "the base of the first row": replaced("from[n * columns + m]", "from[m]"),
        "the update of the first eight columns": replaced(
            "right_tile[e][m / 4][4 * lane + m % 4]", "right_tile[e][m / 4][m % 4]"
        ),
    },
    "qlora.linear": {
        "missing barrier": replaced(
            "codeword[threadIdx.x] = nf4_codeword(threadIdx.x);\n    __syncthreads();",
            "codeword[threadIdx.x] = nf4_codeword(threadIdx.x);",
        ),
        "halves swapped": replaced("element % 2 ? 0 : 4", "element % 2 ? 4 : 0"),
        "words across the ends of rows": replaced("first % 8 == 0 && ", ""),
        "unguarded rows": replaced("n < rows && k < o", "k < o"),
        "half a warp in the mask": replaced("0xffffffff", "0xffff0000"),
        "the weight keeps float32": replaced(
            "into[e] = e < count ? widen(weights[e])",
            "into[e] = e < count ? codeword[code_at(packed, k * i + j + e)] * absmax[(k * i + j + e) >> log2_blocksize]",
        ),
    },
}

"""Mistakes that are made in CUDA, as another piece of source: each must be caught on the host shim.

By operation, and by what was done. Those of arithmetic are the kit's to find; those of the execution model the shim's.
"""


def replaced(old, new):
    """The kernel with one piece of its source replaced, where it has that piece."""
    return lambda kernel: kernel.changed(old, new) if old in kernel.source else kernel


FAULTS = {
    "nf4.quantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "blocks begin one late": replaced("(blockIdx.x * (long long)", "((blockIdx.x + 1) * (long long)"),
        "halves swapped": replaced(
            "nearest(midpoint, v[0]) << 4 | nearest(midpoint, v[1])",
            "nearest(midpoint, v[1]) << 4 | nearest(midpoint, v[0])",
        ),
        "unguarded read of the odd one out": replaced(
            "k + half < n ? widen(weight[k + half]) : 0.0f", "widen(weight[k + half])"
        ),
        "unguarded block": replaced("begin + blocksize < n ? begin + blocksize : n", "begin + blocksize"),
        "warps past the end go on": replaced("if (begin >= n) return;", ""),
        "unwritten last pair": replaced("k < end; k += 64", "k + 2 < end; k += 64"),
        "half a warp in the mask": replaced("0xffffffff", "0x0000ffff"),
        "one lane missing from the mask": replaced("0xffffffff", "0x7fffffff"),
        "maximum of even lanes only": replaced("distance; distance /= 2", "distance > 1; distance /= 2"),
        "no floor": replaced("fmaxf(largest, 1e-38f)", "largest"),
        "midpoints go up": replaced("v > midpoint[code] ", "v >= midpoint[code] "),
        "maximum of signed weights": replaced("fabsf(widen(weight[k]))", "widen(weight[k])"),
        "the table's barrier is inside a branch": replaced(
            "midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);\n    __syncthreads();",
            "{ midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x); __syncthreads(); }",
        ),
    },
    "nf4.dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "halves swapped": replaced(
            "packed[element / 2] & 15 : packed[element / 2] >> 4", "packed[element / 2] >> 4 : packed[element / 2] & 15"
        ),
        "unguarded tail": replaced("if (k < n) ", ""),
        "unwritten last element": replaced("if (k < n) ", "if (k < n - 1) "),
        "next block's maximum": replaced("absmax[k / blocksize]", "absmax[(k + 1) / blocksize]"),
        "a codeword left out": replaced("threadIdx.x < 16", "threadIdx.x < 15"),
    },
    "nf4.double_dequantize": {
        "missing barrier": replaced("__syncthreads();", ""),
        "product and sum in one rounding": replaced(
            "codeword[codes[k]] * absmax2[k / 256] + offset[0]",
            "multiply_add(codeword[codes[k]], absmax2[k / 256], offset[0])",
        ),
        "no zero in the map": replaced("if (code == 127) return 0.0f;", ""),
        "ends from one side": replaced("if (k < (parts + 1) / 2) return", "return"),
        "unguarded tail": replaced("if (k < m) ", ""),
        "offset per block": replaced("offset[0]", "offset[k / 256]"),
    },
    "lora.linear": {
        "no barrier before the products": replaced("inner, columns);\n        __syncthreads();", "inner, columns);"),
        "no barrier after the products": replaced("sum);\n        __syncthreads();", "sum);"),
        "blocks of columns begin one late": replaced(
            "blockIdx.y * (long long)(blockDim", "(blockIdx.y + 1) * (long long)(blockDim"
        ),
        "one row short": replaced("if (row + n < rows) sum[n]", "if (row + n + 1 < rows) sum[n]"),
        "unguarded rows": replaced("if (lane == n && row + n < rows)", "if (lane == n)"),
        "unguarded columns": replaced("if (k >= o) return;", ""),
        "unguarded tile": replaced("row + r < rows && column + c < columns ?", "row + r < rows ?"),
        "unwritten last row": replaced("lane != n || row + n >= rows", "lane != n || row + n + 1 >= rows"),
        "half a warp in the mask": replaced("0xffffffff", "0x0000ffff"),
        "half a warp is summed": replaced("int distance = 16", "int distance = 8"),
        "scaling lost": replaced("(wide)scaling * inner", "inner"),
        "the bias of the update is not scaled": replaced(
            "(wide)scaling * inner", "(wide)scaling * update[n] + (inner - update[n])"
        ),
        "mask lost on the way back": replaced("if (kept) sum = kept[at] ? sum / (wide)keep : (wide)0;", ""),
        "the mask multiplies": replaced(
            "kept[n * i + j] ? widen(x[n * i + j]) / (wide)keep : (wide)0", "kept[n * i + j] * widen(x[n * i + j])"
        ),
        "the last inner step is left out": replaced("k < inner; k += TILE", "k + TILE < inner; k += TILE"),
        "transposed where it is not": replaced("left_turned ? k * rows + n : n * inner + k", "n * inner + k"),
        "the last row of the batch is not summed": replaced("n < rows; n++) total", "n < rows - 1; n++) total"),
    },
    "lora.merge": {
        "unguarded tail": replaced("if (at >= rows * columns) return;", ""),
        "unwritten last element": replaced(
            "if (at >= rows * columns) return;", "if (at >= rows * columns - 1) return;"
        ),
        "the last rank is left out": replaced("l < r; l++", "l < r - 1; l++"),
        "scaling twice": replaced("sum *= (wide)scaling", "sum *= (wide)scaling * (wide)scaling"),
        "left transposed": replaced("left[n * r + l]", "left[l * rows + n]"),
    },
    "qlora.linear": {
        "missing barrier": replaced(
            "codeword[threadIdx.x] = nf4_codeword(threadIdx.x);\n    __syncthreads();",
            "codeword[threadIdx.x] = nf4_codeword(threadIdx.x);",
        ),
        "halves swapped": replaced("e % 2 ? 0 : 4", "e % 2 ? 4 : 0"),
        "halves swapped in single codes": replaced(
            "packed[element / 2] & 15 : packed[element / 2] >> 4", "packed[element / 2] >> 4 : packed[element / 2] & 15"
        ),
        "the first block's maximum for a whole row": replaced("absmax[first / blocksize]", "absmax[k * i / blocksize]"),
        "the first maximum for all, where W is decoded first": replaced("absmax[k / blocksize]", "absmax[0]"),
        "words across the ends of rows": replaced("i % 8 == 0 && ", ""),
        "unguarded rows": replaced("lane != n || row + n >= rows", "lane != n"),
        "half a warp in the mask": replaced("0xffffffff", "0xffff0000"),
        "a row of the batch is left out": replaced(
            "n < ROWS; n++)\n                    if", "n < ROWS - 1; n++)\n                    if"
        ),
        "the weight keeps float32": replaced(
            "widen(narrowed<STORAGE>(codeword[code] * scale))", "codeword[code] * scale"
        ),
    },
}

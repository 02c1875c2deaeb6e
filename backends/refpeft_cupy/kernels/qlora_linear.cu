// QLoRA's layer (arXiv:2305.14314, equation 5) for a small batch: the NF4 base is decoded inside the product.
//
//     y = x Wᵀ + s h Bᵀ + bias          W = f32(codebook[code] absmax), rounded to STORAGE        h = x Aᵀ by lora_down
//
// W never exists in memory: half a byte is read for each of its elements, which for few rows is nearly all that is read. Each
// element is rounded to STORAGE before it is multiplied, as the definition has it. A block computes ROWS by COLUMNS elements of y,
// as in lora_linear; W is decoded once for all ROWS.
//
// A thread decodes eight codes at a time. Where rows of W begin at whole words of eight (i a multiple of 8), that is one load of four
// bytes and one absmax.

#include "dots.cuh"
#include "nf4.cuh"

extern "C" __global__ void qlora_linear(
    const STORAGE* x, const unsigned char* packed, const float* absmax, const STORAGE* h, const STORAGE* b, const STORAGE* bias,
    STORAGE* y, long long rows, long long i, long long o, long long r, double scaling, int log2_blocksize
) {
    __shared__ float codeword[16];
    if (threadIdx.x < 16) codeword[threadIdx.x] = nf4_codeword(threadIdx.x);
    __syncthreads();

    const long long row = blockIdx.x * (long long)ROWS, column = blockIdx.y * (long long)COLUMNS;
    auto decoded = [&](long long k, long long j, auto count, wide (&into)[8]) {
        STORAGE weights[8];
        decode_eight(packed, absmax, codeword, log2_blocksize, k * i + j, count, weights);
        #pragma unroll
        for (int e = 0; e < 8; e++) into[e] = e < count ? widen(weights[e]) : (wide)0;
    };
    const long long n = row + threadIdx.x / COLUMNS, k = column + threadIdx.x % COLUMNS;
    const bool writes = threadIdx.x < ROWS * COLUMNS && n < rows && k < o, whole = in_eights(x, i) && at_word(packed);
    const wide update = writes ? dot(h + n * r, b + k * r, r) : 0;
    const wide base = dots(Matrix{x, i}, decoded, row, rows, column, o, i, whole);
    if (!writes) return;
    const wide sum = base + (wide)scaling * update;
    y[n * o + k] = narrowed<STORAGE>(bias ? sum + widen(bias[k]) : sum);
}

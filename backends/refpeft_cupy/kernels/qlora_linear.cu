// QLoRA's layer (arXiv:2305.14314, equation 5) for a small batch: the NF4 base is decoded inside the product.
//
//     y = x Wᵀ + s h Bᵀ + bias          W = f32(codebook[code] absmax), rounded to STORAGE        h = x Aᵀ by lora_down
//
// W never exists in memory: half a byte is read for each of its elements, which for few rows is nearly all that is read. Each
// element is rounded to STORAGE before it is multiplied, as the definition has it. One warp computes ROWS elements of a column of
// y, as in lora_linear; W is decoded once for all of them.
//
// Where rows of W begin at whole words of eight codes (i a multiple of 8, packed aligned to four bytes), each lane takes a word at
// a time: one load, and one absmax, since a block begins at a multiple of 32 elements. Elsewhere lanes take single codes.

#include "dots.cuh"
#include "nf4.cuh"

extern "C" __global__ void qlora_linear(
    const STORAGE* x, const unsigned char* packed, const float* absmax, const STORAGE* h, const STORAGE* b, const STORAGE* bias,
    STORAGE* y, long long rows, long long i, long long o, long long r, double scaling, int blocksize
) {
    __shared__ float codeword[16];
    if (threadIdx.x < 16) codeword[threadIdx.x] = nf4_codeword(threadIdx.x);
    __syncthreads();

    const int lane = threadIdx.x % 32;
    const long long row = blockIdx.x * (long long)ROWS, k = blockIdx.y * (long long)(blockDim.x / 32) + threadIdx.x / 32;
    if (k >= o) return;
    wide base[ROWS], update[ROWS];
    auto decoded = [&](int code, float scale) { return widen(narrowed<STORAGE>(codeword[code] * scale)); };
    auto input = [&](long long n, long long j) { return widen(x[n * i + j]); };
    auto low = [&](long long n, long long j) { return widen(h[n * r + j]); };

    if (i % 8 == 0 && (unsigned long long)packed % 4 == 0) {
        for (int n = 0; n < ROWS; n++) base[n] = 0;
        for (long long j = 8 * lane; j < i; j += 8 * 32) {
            const long long first = k * i + j;
            const unsigned word = *(const unsigned*)(packed + first / 2);
            const float scale = absmax[first / blocksize];
            for (int e = 0; e < 8; e++) {
                const wide w = decoded(word >> (8 * (e / 2) + (e % 2 ? 0 : 4)) & 15, scale);
                for (int n = 0; n < ROWS; n++)
                    if (row + n < rows) base[n] = multiply_add(input(row + n, j + e), w, base[n]);
            }
        }
        for (int n = 0; n < ROWS; n++) base[n] = over_lanes(base[n]);
    } else {
        auto column = [&](long long j) { return decoded(nf4_code(packed, k * i + j), absmax[(k * i + j) / blocksize]); };
        dots(input, column, row, rows, i, base);
    }
    dots(low, [&](long long j) { return widen(b[k * r + j]); }, row, rows, r, update);
    for (int n = 0; n < ROWS; n++) {
        if (lane != n || row + n >= rows) continue;
        const wide sum = base[n] + (wide)scaling * update[n];
        y[(row + n) * o + k] = narrowed<STORAGE>(bias ? sum + widen(bias[k]) : sum);
    }
}

// Codes of 4 bits in blocks that share a maximum: how they lie in memory, and how weights become codes and codes weights, whatever
// the 16 codewords are (`refpeft.ops._blocks`).
//
// Kernels keep codewords or midpoints in shared memory, one copy for each block of threads: lanes that ask for different ones then
// ask different banks, where constant memory would serve them one after the other.
//
// Block sizes are powers of two from 32 on, and come as their logarithms: a division of 64 bits would be the slowest step of all.
// A block begins at a multiple of 32 elements, so that eight codes from a multiple of 8 on share their block, and are one word.

#pragma once

#include "eight.cuh"

// Of two codes in a byte, the one of an even element is the high half: how far from the right the code of `element` lies in a word.
__device__ inline int shift_of(int element) { return 8 * (element / 2) + (element % 2 ? 0 : 4); }

__device__ inline int code_at(const unsigned char* packed, long long element) {
    return element % 2 ? packed[element / 2] & 15 : packed[element / 2] >> 4;
}

// Whether codes begin where words of eight of them may be read.
__device__ inline bool at_word(const unsigned char* packed) { return (unsigned long long)packed % 4 == 0; }

// The weights of eight elements from `first`, a multiple of 8, on: f32(codeword absmax), rounded to STORAGE.
__device__ inline void decode_eight(
    const unsigned char* packed, const float* absmax, const float* codeword, int log2_blocksize, long long first, Whole,
    STORAGE (&result)[8]
) {
    const unsigned word = *(const unsigned*)(packed + first / 2);
    const float scale = absmax[first >> log2_blocksize];
    #pragma unroll
    for (int e = 0; e < 8; e++) result[e] = narrowed<STORAGE>(codeword[word >> shift_of(e) & 15] * scale);
}

// The weights of the first `count` of them, at most eight.
__device__ inline void decode_eight(
    const unsigned char* packed, const float* absmax, const float* codeword, int log2_blocksize, long long first, long long count,
    STORAGE (&result)[8]
) {
    if (count >= 8 && first % 8 == 0 && at_word(packed + first / 2))
        decode_eight(packed, absmax, codeword, log2_blocksize, first, Whole(), result);
    else {
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count)
                result[e] = narrowed<STORAGE>(codeword[code_at(packed, first + e)] * absmax[(first + e) >> log2_blocksize]);
    }
}

// y = f32(codeword absmax), rounded once more to STORAGE.
//
// A thread takes four bytes, which are eight weights of one block, and writes them at once. This is bound by memory, and most of
// it is what is written: neighbouring threads write neighbouring weights, whole sectors at a time.
//
// The product is one rounding, the conversion another. An odd n leaves the last half byte without a weight: it is not written.
__device__ inline void decode_blocks(
    const unsigned char* packed, const float* absmax, const float* codeword, STORAGE* y, long long n, int log2_blocksize
) {
    const long long first = 8 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
    STORAGE weights[8];
    decode_eight(packed, absmax, codeword, log2_blocksize, first, n - first, weights);
    store_eight(y + first, n - first, weights);
}

// For each block of consecutive weights, with code(v) from the caller:
//
//     absmax = max |w|
//     s      = max(absmax, f32(1e-38))
//     v      = f32(w f32(1 / s))     in a full block,     f32(w / s)     in the partial one at the end
//
// A lane takes eight neighbouring weights, which are four bytes of the result, so that no byte has two writers. A block of 64 is
// taken by a team of 8 lanes, one of 256 by a whole warp; larger ones the warp takes in several strides. The maximum goes round the
// team by shuffles, in which all lanes of the warp take part, those past the end with nothing to tell. A lane's last eight
// weights are still in registers when the maximum is known: strides go back from there, and only large blocks are read twice.
//
// v is not clipped to [-1, 1]: no code of a v beyond differs from that of -1 or 1. An odd weight out is joined by the code of zero.
// With `keep_floor` (the variant bitsandbytes-cpu) the partial block's stored maximum is s.
template <class Code>
__device__ inline void quantize_blocks(
    const STORAGE* weight, unsigned char* packed, float* absmax, long long n, int log2_blocksize, int keep_floor, Code code
) {
    const int log2_team = log2_blocksize < 8 ? log2_blocksize - 3 : 5, stride = 8 << log2_team;
    const long long thread = blockIdx.x * (long long)blockDim.x + threadIdx.x, block = thread >> log2_team;
    const long long begin = block << log2_blocksize, whole = begin + (1LL << log2_blocksize), end = whole < n ? whole : n;
    const long long first = begin + 8 * (thread & ((1 << log2_team) - 1));

    wide w[8];
    float largest = 0;
    long long k = first;
    for (; k < end; k += stride) {
        load_eight(weight + k, end - k, w);
        for (int e = 0; e < 8; e++) largest = fmaxf(largest, fabsf((float)w[e]));
    }
    for (int distance = 1 << log2_team >> 1; distance; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));

    const bool full = whole <= n;
    const float s = fmaxf(largest, 1e-38f), reciprocal = 1.0f / s;
    for (k -= stride; k >= first; k -= stride) {
        unsigned word = 0;
        for (int e = 0; e < 8; e++) {
            const float v = full ? (float)w[e] * reciprocal : (float)w[e] / s;
            word |= (unsigned)code(v) << shift_of(e);
        }
        unsigned char* place = packed + k / 2;
        if (k + 8 <= end && at_word(place)) *(unsigned*)place = word;
        else
            for (int pair = 0; pair < 4; pair++)
                if (k + 2 * pair < end) place[pair] = (unsigned char)(word >> (8 * pair));
        if (k > first) load_eight(weight + k - stride, end - (k - stride), w);
    }
    if (first == begin && begin < n) absmax[block] = keep_floor && !full ? s : largest;
}

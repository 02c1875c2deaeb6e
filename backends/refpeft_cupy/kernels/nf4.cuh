// The 16 codewords of NF4, by the bits of their float32 numbers, and the midpoints between neighbours; and how codes lie in memory.
//
// Kernels keep codewords or midpoints in shared memory, one copy for each block of threads: lanes that ask for different ones then
// ask different banks, where constant memory would serve them one after the other.
//
// Block sizes are powers of two from 32 on, and come as their logarithms: a division of 64 bits would be the slowest step of all.
// A block begins at a multiple of 32 elements, so that eight codes from a multiple of 8 on share their block, and are one word.

#pragma once

#include "refpeft.cuh"

// f32(codebook[code]).
__device__ inline float nf4_codeword(int code) {
    const unsigned bits[16] = {
        0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
        0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000,
    };
    return __uint_as_float(bits[code]);
}

// f32((c + c') / 2) for the codewords of code and code + 1: halving is exact.
__device__ inline float nf4_midpoint(int code) { return (nf4_codeword(code) + nf4_codeword(code + 1)) * 0.5f; }

// Of two codes in a byte, the one of an even element is the high half.
__device__ inline int nf4_code(const unsigned char* packed, long long element) {
    return element % 2 ? packed[element / 2] & 15 : packed[element / 2] >> 4;
}

// The weights of `count` elements from `first` on, at most eight: f32(codeword absmax), rounded to STORAGE.
__device__ inline void nf4_decode(
    const unsigned char* packed, const float* absmax, const float* codeword, int log2_blocksize, long long first, long long count,
    STORAGE (&result)[8]
) {
    const unsigned char* place = packed + first / 2;
    if (count >= 8 && first % 8 == 0 && (unsigned long long)place % 4 == 0) {
        const unsigned word = *(const unsigned*)place;
        const float scale = absmax[first >> log2_blocksize];
        #pragma unroll
        for (int e = 0; e < 8; e++)
            result[e] = narrowed<STORAGE>(codeword[word >> (8 * (e / 2) + (e % 2 ? 0 : 4)) & 15] * scale);
    } else {
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count)
                result[e] = narrowed<STORAGE>(codeword[nf4_code(packed, first + e)] * absmax[(first + e) >> log2_blocksize]);
    }
}

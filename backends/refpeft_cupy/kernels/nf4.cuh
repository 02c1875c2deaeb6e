// The 16 codewords of NF4, by the bits of their float32 numbers, and the midpoints between neighbours.

#pragma once

#include "four_bit.cuh"

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

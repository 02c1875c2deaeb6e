// The 16 codewords of NF4, by the bits of their float32 numbers, and the midpoints between neighbours.
//
// Both are kept in shared memory, one copy for each block of threads: lanes that ask for different codewords then ask different
// banks, where constant memory would serve them one after the other.

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

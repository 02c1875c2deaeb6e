// The codewords of bitsandbytes' FP4: a sign bit beside one of 8 magnitudes.

#pragma once

#include "four_bit.cuh"

// f32(m / 12), m being 1/16 where E2M1 has 1.
__device__ inline float fp4_codeword(int code) {
    const float m[8] = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};
    const float magnitude = m[code & 7] / 12.0f;
    return code & 8 ? -magnitude : magnitude;
}

// The code of the magnitude that has `place` smaller ones.
__device__ inline int fp4_code_of(int place) { return 0x32547610 >> (4 * place) & 7; }

// t_place = f32((m + m') / 2), between the magnitude of that place and the next: halving is exact.
__device__ inline float fp4_midpoint(int place) {
    return (fp4_codeword(fp4_code_of(place)) + fp4_codeword(fp4_code_of(place + 1))) * 0.5f;
}

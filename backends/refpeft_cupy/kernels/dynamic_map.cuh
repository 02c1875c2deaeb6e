// The dynamic maps of 8 bits (arXiv:2110.02861, section 2.1), one codeword at a time, so that no table is stored.
//
// With sign, for e from -6 to 0, [0.1, 1] is cut into 2^(6+e) equal parts, whose midpoints times 10^e are codewords with both
// signs; 0 and 1 are the other two. In order, codes below 127 are negative, 127 is zero, and 255 is one. Without sign the parts are
// 2^(7+e), code 0 is zero and 255 one. As float32 steps, with p parts and a = f32(0.1):
//
//     step     = f32(f32(1 - a) / p)
//     end_k    = f32(a + step k) for k < (p + 1) / 2,  f32(1 - step (p - k)) otherwise: one rounding, a multiply_add
//     codeword = f32(f32(10^e) f32((end_k + end_(k+1)) / 2))

#pragma once

#include "refpeft.cuh"

__device__ inline float end_of_part(int k, int parts) {
    const float low = 0.1f, step = (1.0f - low) / (float)parts;
    if (k < (parts + 1) / 2) return multiply_add(step, (float)k, low);
    return multiply_add(-step, (float)(parts - k), 1.0f);
}

__device__ inline float dynamic_codeword(int code, bool with_sign) {
    const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    const int zero = with_sign ? 127 : 0;
    if (code == zero) return 0.0f;
    if (code == 255) return 1.0f;
    int place = code < zero ? zero - code : code - zero;    // from 1 on: 1, 2, 4, ..., 64 codewords in the decades
    if (!with_sign) place++;                                // from 2 on: 2, 4, 8, ..., 128
    int log2_parts = 0;
    while (place >> (log2_parts + 1)) log2_parts++;
    const int parts = 1 << log2_parts, k = place - parts;
    const float power = powers[with_sign ? log2_parts : log2_parts - 1];
    const float magnitude = power * ((end_of_part(k, parts) + end_of_part(k + 1, parts)) * 0.5f);
    return code < zero ? -magnitude : magnitude;
}

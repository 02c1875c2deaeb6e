// The signed dynamic map of 8 bits (arXiv:2110.02861, section 2.1), one codeword at a time, so that no table is stored.
//
// For e from -6 to 0, [0.1, 1] is cut into 2^(6+e) equal parts, whose midpoints times 10^e are codewords with both signs; 0 and 1
// are the other two. In order, codes below 127 are negative, 127 is zero, and 255 is one. As float32 steps, with p parts and
// a = f32(0.1):
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

__device__ inline float dynamic_codeword(int code) {
    const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    if (code == 127) return 0.0f;
    if (code == 255) return 1.0f;
    int place = code < 127 ? 127 - code : code - 127;    // from 1 to 127: 2^decade codewords in each decade
    int decade = 0;
    while (place >> (decade + 1)) decade++;
    const int parts = 1 << decade, k = place - parts;
    const float magnitude = powers[decade] * ((end_of_part(k, parts) + end_of_part(k + 1, parts)) * 0.5f);
    return code < 127 ? -magnitude : magnitude;
}

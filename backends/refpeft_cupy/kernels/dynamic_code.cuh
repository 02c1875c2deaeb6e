// From numbers to codes on a dynamic map, by a block of 256 threads that has one number each (`refpeft.ops.dynamic8`).
//
//     v    = f32(x f32(1 / max(largest, f32(1e-38))))          largest = max |x|
//     code = the number of midpoints of the map below v
//
// By bins (the variant bitsandbytes-cpu) v is clipped to [-1, 1] and rounded to one of 65536 bins f32(f32(2 j / 65535) - 1) first, the
// floor of the divisor is left out, and a block of zeros gets codes 0.

#pragma once

#include "dynamic_map.cuh"

// max |x| over the block. It goes round each warp by shuffles and between the warps through shared memory, `of_warp`, which may be
// written again behind the next barrier.
__device__ inline float largest_of_block(float x, float* of_warp) {
    float largest = fabsf(x);
    for (int distance = 16; distance; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int warp = 0; warp < 8; warp++) largest = fmaxf(largest, of_warp[warp]);
    return largest;
}

// Between a codeword and the next; halving their sum is exact. Of the last there is none: the table has a place that nobody asks for.
__device__ inline float midpoint_of(float codeword, float next) { return (codeword + next) * 0.5f; }

// Eight questions find the code among the map's 255 midpoints.
__device__ inline unsigned char dynamic_code(const float* midpoint, float x, float largest, int by_bins) {
    float v = x * (1.0f / (by_bins ? largest : fmaxf(largest, 1e-38f)));
    if (by_bins) {
        const float bin = floorf((float)((fminf(fmaxf(v, -1.0f), 1.0f) + 1.0f) * 0.5f * 65535.0 + 0.5));
        v = 2 * bin / 65535.0f - 1.0f;
    }
    int code = 0;
    for (int step = 128; step; step /= 2) code += v > midpoint[code + step - 1] ? step : 0;
    return (unsigned char)(by_bins && largest == 0.0f ? 0 : code);
}

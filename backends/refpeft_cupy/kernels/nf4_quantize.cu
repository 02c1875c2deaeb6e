// NF4 quantisation (QLoRA, arXiv:2305.14314, equations 1 and 4), as the float32 steps of `nf4.quantize`.
//
// For each block of `blocksize` consecutive weights:
//
//     absmax = max |w|
//     s      = max(absmax, f32(1e-38))
//     v      = f32(w f32(1 / s))     in a full block,     f32(w / s)     in the partial one at the end
//     code   = the number of midpoints below v, v clipped to [-1, 1]
//
// One warp takes one block. Its lanes stride over pairs of weights, a pair being a byte of the result, so that no byte has two
// writers; blocks are even, so that no pair belongs to two of them. The maximum goes round the warp by shuffles. Weights are
// read twice, the second time from cache: a block is 16 KiB at most.
//
// The code is found by four questions instead of fifteen: midpoints ascend, so the answers to v > m are yes up to somewhere and
// no from there on. A v on a midpoint is not above it and gets the lower code. Clipping changes no answer, as all midpoints lie
// within (-1, 1), and is left out.
//
// An odd weight out is joined by 7, the code of zero. With `keep_floor` (the variant bitsandbytes-cpu) the partial block's
// stored maximum is s.

#include "nf4.cuh"

__device__ inline int nearest(const float* midpoint, float v) {
    int code = v > midpoint[7] ? 8 : 0;
    code += v > midpoint[code + 3] ? 4 : 0;
    code += v > midpoint[code + 1] ? 2 : 0;
    code += v > midpoint[code] ? 1 : 0;
    return code;
}

extern "C" __global__ void nf4_quantize(
    const STORAGE* weight, unsigned char* packed, float* absmax, long long n, int blocksize, int keep_floor
) {
    __shared__ float midpoint[15];
    if (threadIdx.x < 15) midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);
    __syncthreads();

    const int lane = threadIdx.x % 32;
    const long long block = (blockIdx.x * (long long)blockDim.x + threadIdx.x) / 32;
    const long long begin = block * blocksize, end = begin + blocksize < n ? begin + blocksize : n;
    if (begin >= n) return;

    float largest = 0;
    for (long long k = begin + lane; k < end; k += 32) largest = fmaxf(largest, fabsf(widen(weight[k])));
    for (int distance = 16; distance; distance /= 2)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, distance));

    const bool full = end - begin == blocksize;
    const float s = fmaxf(largest, 1e-38f), reciprocal = 1.0f / s;
    for (long long k = begin + 2 * lane; k < end; k += 64) {
        float v[2];
        for (int half = 0; half < 2; half++) {
            float w = k + half < n ? widen(weight[k + half]) : 0.0f;
            v[half] = full ? w * reciprocal : w / s;
        }
        packed[k / 2] = (unsigned char)(nearest(midpoint, v[0]) << 4 | nearest(midpoint, v[1]));
    }
    if (lane == 0) absmax[block] = keep_floor && !full ? s : largest;
}

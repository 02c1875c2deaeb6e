// NF4 quantisation (QLoRA, arXiv:2305.14314, equations 1 and 4), as the float32 steps of `nf4.quantize`.
//
// For each block of consecutive weights:
//
//     absmax = max |w|
//     s      = max(absmax, f32(1e-38))
//     v      = f32(w f32(1 / s))     in a full block,     f32(w / s)     in the partial one at the end
//     code   = the number of midpoints below v, v clipped to [-1, 1]
//
// A lane takes eight neighbouring weights, which are four bytes of the result, so that no byte has two writers. A block of 64 is
// taken by a team of 8 lanes, one of 256 by a whole warp; larger ones the warp takes in several strides. The maximum goes round the
// team by shuffles, in which all lanes of the warp take part, those past the end with nothing to tell. A lane's last eight
// weights are still in registers when the maximum is known: strides go back from there, and only large blocks are read twice.
//
// The code is found by four questions instead of fifteen: midpoints ascend, so the answers to v > m are yes up to somewhere and
// no from there on. A v on a midpoint is not above it and gets the lower code. Clipping changes no answer, as all midpoints lie
// within (-1, 1), and is left out.
//
// An odd weight out is joined by 7, the code of zero. With `keep_floor` (the variant bitsandbytes-cpu) the partial block's
// stored maximum is s.

#include "eight.cuh"
#include "nf4.cuh"

__device__ inline int nearest(const float* midpoint, float v) {
    int code = v > midpoint[7] ? 8 : 0;
    code += v > midpoint[code + 3] ? 4 : 0;
    code += v > midpoint[code + 1] ? 2 : 0;
    code += v > midpoint[code] ? 1 : 0;
    return code;
}

extern "C" __global__ void nf4_quantize(
    const STORAGE* weight, unsigned char* packed, float* absmax, long long n, int log2_blocksize, int keep_floor
) {
    __shared__ float midpoint[15];
    if (threadIdx.x < 15) midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);
    __syncthreads();

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
            word |= (unsigned)nearest(midpoint, v) << (8 * (e / 2) + (e % 2 ? 0 : 4));
        }
        unsigned char* place = packed + k / 2;
        if (k + 8 <= end && (unsigned long long)place % 4 == 0) *(unsigned*)place = word;
        else
            for (int pair = 0; pair < 4; pair++)
                if (k + 2 * pair < end) place[pair] = (unsigned char)(word >> (8 * pair));
        if (k > first) load_eight(weight + k - stride, end - (k - stride), w);
    }
    if (first == begin && begin < n) absmax[block] = keep_floor && !full ? s : largest;
}

// NF4 quantisation (QLoRA, arXiv:2305.14314, equations 1 and 4), as the float32 steps of `nf4.quantize`: the code of v = w / absmax is
// the number of midpoints below v.
//
// It is found by four questions instead of fifteen: midpoints ascend, so the answers to v > m are yes up to somewhere and
// no from there on. A v on a midpoint is not above it and gets the lower code. All midpoints lie within (-1, 1).

#include "nf4.cuh"

extern "C" __global__ void nf4_quantize(
    const STORAGE* weight, unsigned char* packed, float* absmax, long long n, int log2_blocksize, int keep_floor
) {
    __shared__ float midpoint[15];
    if (threadIdx.x < 15) midpoint[threadIdx.x] = nf4_midpoint(threadIdx.x);
    __syncthreads();

    quantize_blocks(weight, packed, absmax, n, log2_blocksize, keep_floor, [&](float v) {
        int code = v > midpoint[7] ? 8 : 0;
        code += v > midpoint[code + 3] ? 4 : 0;
        code += v > midpoint[code + 1] ? 2 : 0;
        code += v > midpoint[code] ? 1 : 0;
        return code;
    });
}

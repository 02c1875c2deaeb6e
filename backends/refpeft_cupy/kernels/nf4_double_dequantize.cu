// Double dequantisation (QLoRA, arXiv:2305.14314, the inner one of equation 6): absmax = f32(f32(map[code] absmax2) + offset).
//
// Each of the 256 threads of a block computes one codeword of the map, and all look them up in shared memory. Offset is an array of
// one number, which stays on the device.

#include "dynamic_map.cuh"

extern "C" __global__ void nf4_double_dequantize(
    const unsigned char* codes, const float* absmax2, const float* offset, float* absmax, long long m
) {
    __shared__ float codeword[256];
    codeword[threadIdx.x] = dynamic_codeword(threadIdx.x, true);
    __syncthreads();

    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k < m) absmax[k] = codeword[codes[k]] * absmax2[k / 256] + offset[0];
}

// FP4 dequantisation, as the steps of `fp4.dequantize`: y = f32(codebook[code] absmax), rounded once more to STORAGE.

#include "fp4.cuh"

extern "C" __global__ void fp4_dequantize(
    const unsigned char* packed, const float* absmax, STORAGE* y, long long n, int log2_blocksize
) {
    __shared__ float codeword[16];
    if (threadIdx.x < 16) codeword[threadIdx.x] = fp4_codeword(threadIdx.x);
    __syncthreads();

    decode_blocks(packed, absmax, codeword, y, n, log2_blocksize);
}

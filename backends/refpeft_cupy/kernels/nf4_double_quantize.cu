// Double quantisation (QLoRA, arXiv:2305.14314, section 3): the block maxima of NF4 to 8 bits, as the float32 steps of
// `nf4.double_quantize`.
//
// For each block of 256 consecutive maxima, d = f32(absmax - offset) on the dynamic map with sign, under absmax2 = max |d|.
//
// One block of 256 threads takes one block of maxima, a thread each. A thread also computes one of the 255 midpoints, in shared
// memory, among which all then search.

#include "dynamic_code.cuh"

extern "C" __global__ void nf4_double_quantize(
    const float* absmax, const float* offset, unsigned char* codes, float* absmax2, long long m, int by_bins
) {
    __shared__ float midpoint[256], of_warp[8];
    const int next = threadIdx.x < 255 ? threadIdx.x + 1 : 255;
    midpoint[threadIdx.x] = midpoint_of(dynamic_codeword(threadIdx.x, true), dynamic_codeword(next, true));

    const long long k = blockIdx.x * 256LL + threadIdx.x;
    const float d = k < m ? absmax[k] - offset[0] : 0.0f, largest = largest_of_block(d, of_warp);
    if (threadIdx.x == 0) absmax2[blockIdx.x] = largest;
    if (k < m) codes[k] = dynamic_code(midpoint, d, largest, by_bins);
}

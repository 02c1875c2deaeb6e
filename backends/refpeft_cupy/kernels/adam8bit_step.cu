// A step of Adam on moments of 8 bits (arXiv:2110.02861, section 2), with decay of AdamW, as `adam8bit.step` has it:
//
//     m, v      decoded: f32(map[code] absmax), in blocks of 256, the first map with sign, the second without
//     m', v'    = m + (1 - b1) (g - m),  b2 v + (1 - b2) g²
//     p'        = left p - rate m' / (sqrt(v') / root + eps)
//     m', v'    encoded again, under the new maxima of their blocks
//
// The numbers come from the host, in float64: left = 1 - lr decay, rate = lr / (1 - b1ᵗ), root = sqrt(1 - b2ᵗ).
//
// A block of 256 threads takes a block of elements, a thread each, so that everything is read and written once and the moments of
// 32 bits never leave the registers. It takes TURNS of them, one after the other, for one set of tables: a thread computes a
// codeword of each map and a midpoint, in shared memory. The barriers in which the maxima are found also part the midpoints
// from where they are asked for, and one moment's maxima from its next.

#include "dynamic_code.cuh"

const int TURNS = 16;

extern "C" __global__ void adam8bit_step(
    const float* p, const float* grad, const unsigned char* m, const unsigned char* v, const float* m_absmax, const float* v_absmax,
    float* next_p, unsigned char* next_m, unsigned char* next_v, float* next_m_absmax, float* next_v_absmax, long long n,
    double left, double rate, double root, double beta1, double beta2, double eps, int by_bins
) {
    __shared__ float with_sign[256], without_sign[256], midpoint_m[256], midpoint_v[256], of_warp_m[8], of_warp_v[8];
    const int next = threadIdx.x < 255 ? threadIdx.x + 1 : 255;
    with_sign[threadIdx.x] = dynamic_codeword(threadIdx.x, true);
    without_sign[threadIdx.x] = dynamic_codeword(threadIdx.x, false);
    __syncthreads();
    midpoint_m[threadIdx.x] = midpoint_of(with_sign[threadIdx.x], with_sign[next]);
    midpoint_v[threadIdx.x] = midpoint_of(without_sign[threadIdx.x], without_sign[next]);

    for (int turn = 0; turn < TURNS; turn++) {
        const long long block = blockIdx.x * (long long)TURNS + turn, k = block * 256 + threadIdx.x;
        if (block * 256 >= n) return;    // the whole block of threads at once
        float first = 0, second = 0;
        if (k < n) {
            const float g = grad[k], old_first = with_sign[m[k]] * m_absmax[block], old_second = without_sign[v[k]] * v_absmax[block];
            first = old_first + (float)(1 - beta1) * (g - old_first);
            second = (float)beta2 * old_second + (float)(1 - beta2) * (g * g);
            next_p[k] = (float)left * p[k] - (float)rate * first / (sqrtf(second) / (float)root + (float)eps);
        }
        const float largest_m = largest_of_block(first, of_warp_m), largest_v = largest_of_block(second, of_warp_v);
        if (threadIdx.x == 0) next_m_absmax[block] = largest_m, next_v_absmax[block] = largest_v;
        if (k < n) next_m[k] = dynamic_code(midpoint_m, first, largest_m, by_bins);
        if (k < n) next_v[k] = dynamic_code(midpoint_v, second, largest_v, by_bins);
    }
}

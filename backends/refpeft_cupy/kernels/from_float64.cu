// float64 as STORAGE, rounded once, to nearest even; subnormals are kept, which CuPy's own cast flushes.
//
// To 16 bits there are two steps, float64 to float32 to STORAGE, and yet one rounding: the first rounds to odd. What lies between
// two numbers of float32 gets the one whose last bit is 1, which is never half way between two numbers of 16 bits.

#include "refpeft.cuh"

__device__ inline float rounded_to_odd(double x) {
    const float nearest = (float)x;
    if (nearest == x || x != x) return nearest;
    const unsigned bits = __float_as_uint(nearest), towards_zero = fabsf(nearest) > fabs(x) ? bits - 1 : bits;
    return __uint_as_float(towards_zero | 1);
}

__device__ inline void narrow_once(double x, double& y) { y = x; }
__device__ inline void narrow_once(double x, float& y) { y = (float)x; }
template <class T> __device__ inline void narrow_once(double x, T& y) { narrow(rounded_to_odd(x), y); }

extern "C" __global__ void from_float64(const double* x, STORAGE* y, long long n) {
    const long long k = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (k < n) narrow_once(x[k], y[k]);
}

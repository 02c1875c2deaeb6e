// What every kernel includes, for the GPU and for the host alike.
//
// A kernel is compiled once for each dtype: STORAGE names the type of the problem's arrays, `wide` the one that it computes
// in: float64 for itself, float32 for all others. `widen` goes there exactly, `narrow` comes back with one rounding, to
// nearest even, subnormals kept, NaN to NaN.
//
// Nothing is included: nvrtc then needs no CUDA headers. The conversions are the single instructions that cuda_fp16.h and
// cuda_bf16.h stand for; on the host, where no such instructions are taken for granted, they are integer arithmetic.
//
// Products are never contracted to FMA (--fmad=false, -ffp-contract=off): where a kernel wants one, it says multiply_add. So
// the GPU's finite results are the host's, bit for bit.

#pragma once

#ifdef REFPEFT_HOST
#include "shim.hpp"
#endif

#ifndef STORAGE
#define STORAGE float32
#endif

typedef float float32;
typedef double float64;
struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

template <class T> struct Format { typedef T wide; };
template <> struct Format<float16> { typedef float wide; };
template <> struct Format<bfloat16> { typedef float wide; };
typedef Format<STORAGE>::wide wide;

__device__ inline float multiply_add(float x, float y, float sum) { return fmaf(x, y, sum); }
__device__ inline double multiply_add(double x, double y, double sum) { return fma(x, y, sum); }

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ inline float widen(float16 x) {
#ifdef REFPEFT_HOST
    unsigned magnitude = x.bits & 0x7fff, sign = (x.bits & 0x8000u) << 16;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | magnitude << 13);
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
#else
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
    return result;
#endif
}

__device__ inline void narrow(float x, float& result) { result = x; }
__device__ inline void narrow(float x, double& result) { result = x; }
__device__ inline void narrow(double x, double& result) { result = x; }

__device__ inline void narrow(float x, bfloat16& result) {
#ifdef REFPEFT_HOST
    unsigned bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffff) > 0x7f800000;
    result.bits = (unsigned short)(nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#endif
}

__device__ inline void narrow(float x, float16& result) {
#ifdef REFPEFT_HOST
    unsigned bits = __float_as_uint(x), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000) magnitude = 0x7fff;                // NaN
    else if (magnitude >= 0x477ff000) magnitude = 0x7c00;          // 65520 and above is infinite
    else if (magnitude < 0x38800000)                               // below 2^-14, in units of 2^-24
        magnitude = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
    else magnitude = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    result.bits = (unsigned short)(sign | magnitude);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#endif
}

// x rounded to T.
template <class T, class W> __device__ inline T narrowed(W x) {
    T result;
    narrow(x, result);
    return result;
}

// Eight neighbours at a time: one instruction instead of eight, where they lie at a multiple of 16 bytes.
//
// Where they do not, or where an array ends before the eighth, they are moved one by one; what is beyond the end is zero. Which
// way it went changes no bit of any result.
//
// To ask that of each eight keeps loads from being on their way together. A kernel that knows it of a whole matrix says so: its
// count is Whole, which is eight.
//
// Loops over eight are unrolled by force: an array whose places are all known at compile time is kept in registers, any other in
// memory, where it would be the slowest thing of all.

#pragma once

#include "refpeft.cuh"

template <class T> struct alignas(16) Eight { T of[8]; };

template <class T> __device__ inline bool at_sixteen(const T* place) { return (unsigned long long)place % 16 == 0; }

struct Whole { __device__ operator long long() const { return 8; } };

// Whether a matrix whose rows have `width` elements is made of whole eights.
template <class T> __device__ inline bool in_eights(const T* matrix, long long width) {
    return width % 8 == 0 && at_sixteen(matrix);
}

template <class T> __device__ inline void load_eight(const T* from, Whole, wide (&result)[8]) {
    const Eight<T> loaded = *(const Eight<T>*)from;
    #pragma unroll
    for (int e = 0; e < 8; e++) result[e] = widen(loaded.of[e]);
}

// The first `count` of the eight at `from`, at most all of them, as numbers of the wide format.
template <class T> __device__ inline void load_eight(const T* from, long long count, wide (&result)[8]) {
    if (count >= 8 && at_sixteen(from)) load_eight(from, Whole(), result);
    else {
        #pragma unroll
        for (int e = 0; e < 8; e++) result[e] = e < count ? widen(from[e]) : (wide)0;
    }
}

// The first `count` of eight numbers to `to`.
template <class T> __device__ inline void store_eight(T* to, long long count, const T (&given)[8]) {
    if (count >= 8 && at_sixteen(to)) {
        Eight<T> stored;
        #pragma unroll
        for (int e = 0; e < 8; e++) stored.of[e] = given[e];
        *(Eight<T>*)to = stored;
    } else {
        #pragma unroll
        for (int e = 0; e < 8; e++)
            if (e < count) to[e] = given[e];
    }
}

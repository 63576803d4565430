// How a kernel asks for vector code: compiled once per instruction set, chosen when the library is loaded.
#pragma once

// GCC knows these levels from version 12 on; Clang, which calls itself GCC 4, takes the plain path.
#if defined(__x86_64__) && defined(__ELF__) && __GNUC__ >= 12 && !defined(__CUDACC__)
#define ZCPIPE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define ZCPIPE_HAS_CLONES 1
#else
#define ZCPIPE_CLONES
#define ZCPIPE_HAS_CLONES 0
#endif

// A helper of a cloned function must be inlined into it: a call would leave the clone's instruction set.
#if defined(__CUDACC__)
#define ZCPIPE_INLINE __host__ __device__ inline
#else
#define ZCPIPE_INLINE inline __attribute__((always_inline))
#endif

// The same for a lambda, after its parameters.
#define ZCPIPE_INLINED __attribute__((always_inline))

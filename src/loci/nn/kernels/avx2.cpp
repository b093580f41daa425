// The kernels for AVX2.

#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"

// Everything below, instances of templates included, is compiled for these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif

#define LOCI_VBMI 0
#define LOCI_PDEP 1

namespace loci {
namespace {

constexpr Level kLevel = kAvx2;
constexpr char kName[] = "avx2";

#include "scalar.hpp"
#include "vec_avx2.hpp"
#include "body.hpp"

}  // namespace

const Kernels avx2_kernels = table();

}  // namespace loci

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

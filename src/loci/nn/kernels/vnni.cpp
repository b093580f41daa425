// The kernels for AVX-512 with VNNI: products of whole numbers take one instruction.

#if defined(__x86_64__)
#include <cmath>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels.hpp"

// Everything below, instances of templates included, is compiled for these instructions.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#endif

#define LOCI_VBMI 1
#define LOCI_VNNI 1
#define LOCI_PDEP 1

namespace loci {
namespace {

constexpr Level kLevel = kVnni;
constexpr char kName[] = "avx512_vnni";

#include "scalar.hpp"
#include "vec_avx512.hpp"
#include "body.hpp"

}  // namespace

const Kernels vnni_kernels = table();

}  // namespace loci

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

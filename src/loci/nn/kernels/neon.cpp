// The kernels for NEON.

#if defined(__aarch64__)
#include <cmath>
#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "kernels.hpp"

#define LOCI_VBMI 0
#define LOCI_PDEP 0

namespace loci {
namespace {

constexpr Level kLevel = kNeon;
constexpr char kName[] = "neon";

#include "scalar.hpp"
#include "vec_neon.hpp"
#include "body.hpp"

}  // namespace

const Kernels neon_kernels = table();

}  // namespace loci
#endif

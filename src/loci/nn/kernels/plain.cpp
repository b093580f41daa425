// The kernels for any machine, in plain C++.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.hpp"

#define LOCI_VBMI 0
#define LOCI_PDEP 0

namespace loci {
namespace {

constexpr Level kLevel = kPlain;
constexpr char kName[] = "plain";

#include "scalar.hpp"
#include "vec_plain.hpp"
#include "body.hpp"

}  // namespace

const Kernels plain_kernels = table();

}  // namespace loci

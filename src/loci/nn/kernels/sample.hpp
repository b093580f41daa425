// From logits to one token.

#pragma once

#include <cstdint>

namespace loci {

// The token at which the cumulated chance passes `uniform`, of the `top_k` largest logits (all for
// 0; equals of the last one stay) and of those the smallest set that reaches `top_p`.
int64_t sample(const float* logits, int64_t count, double temperature, int64_t top_k, double top_p,
               double uniform);

}  // namespace loci

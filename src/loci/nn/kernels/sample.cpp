#include "sample.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace loci {
namespace {

struct Candidate {
  float logit;
  int32_t id;
};

// The k-th largest of many: most are compared once with the worst that is still in.
float kth_largest(const float* x, int64_t count, int64_t k) {
  std::vector<float> best;
  best.reserve(4 * k + 256);
  float worst = -std::numeric_limits<float>::infinity();
  const auto cut = [&] {
    std::nth_element(best.begin(), best.begin() + (k - 1), best.end(), std::greater<float>());
    best.resize(k);
    worst = best[k - 1];
  };
  for (int64_t i = 0; i < count; ++i) {
    if (int64_t(best.size()) >= k && !(x[i] > worst)) continue;
    best.push_back(x[i]);
    if (best.size() >= best.capacity()) cut();
  }
  cut();
  return worst;
}

}  // namespace

int64_t sample(const float* logits, int64_t count, double temperature, int64_t top_k, double top_p,
               double uniform) {
  const float most = *std::max_element(logits, logits + count);
  float least = -std::numeric_limits<float>::infinity();
  if (top_k > 0 && top_k < count) least = kth_largest(logits, count, top_k);
  std::vector<Candidate> kept;
  for (int64_t i = 0; i < count; ++i)
    if (logits[i] >= least) kept.push_back({logits[i], int32_t(i)});
  if (kept.empty()) return 0;  // no logit is a number
  const auto chance = [&](const Candidate& c) {
    return std::exp(double(c.logit - most) / temperature);
  };
  std::vector<double> chances(kept.size());
  double total = 0;
  for (size_t i = 0; i < kept.size(); ++i) total += chances[i] = chance(kept[i]);
  if (top_p < 1) {
    // Sorted in pieces, because the set that reaches top_p is usually small.
    std::vector<int32_t> order(kept.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = int32_t(i);
    const auto before = [&](int32_t a, int32_t b) {
      return chances[a] != chances[b] ? chances[a] > chances[b] : a < b;
    };
    double collected = 0;
    size_t taken = 0, sorted = 0;
    // The likeliest always takes part, also where top_p times the sum rounds to nothing.
    while (taken < order.size() && (taken == 0 || collected < top_p * total)) {
      if (taken == sorted) {
        const size_t end = std::min(order.size(), std::max<size_t>(64, 4 * sorted));
        std::nth_element(order.begin() + sorted, order.begin() + (end - 1), order.end(), before);
        std::sort(order.begin() + sorted, order.begin() + end, before);
        sorted = end;
      }
      collected += chances[order[taken++]];
    }
    std::sort(order.begin(), order.begin() + taken);  // by id again
    std::vector<Candidate> few;
    std::vector<double> theirs;
    total = 0;
    for (size_t i = 0; i < taken; ++i) {
      few.push_back(kept[order[i]]);
      theirs.push_back(chances[order[i]]);
      total += theirs.back();
    }
    kept.swap(few);
    chances.swap(theirs);
  }
  double sum = 0;
  for (size_t i = 0; i < kept.size(); ++i) {
    sum += chances[i];
    if (sum > uniform * total) return kept[i].id;
  }
  return kept.back().id;
}

}  // namespace loci

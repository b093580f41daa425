#include "weight.hpp"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

namespace loci {
namespace {

int64_t whole(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

const Kernels* const kTables[kLevels] = {
    &plain_kernels,
#if defined(__x86_64__)
    &avx2_kernels,
    &avx512_kernels,
#else
    nullptr,
    nullptr,
#endif
#if defined(__aarch64__)
    &neon_kernels,
#else
    nullptr,
#endif
#if defined(__x86_64__)
    &vnni_kernels,
#else
    nullptr,
#endif
};

int g_level = best_level();

struct Table {
  std::vector<int32_t> base, index;
};

// Where each lane of a weight's vectors finds its scale. Few different ones exist; they stay.
LaneGroups lane_groups(int64_t inner, int group, int lanes, int lane_codes) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int, int, int>, std::unique_ptr<Table>> known;
  std::lock_guard<std::mutex> lock(mutex);
  auto& table = known[{inner, group, lanes, lane_codes}];
  if (!table) {
    table = std::make_unique<Table>();
    for (int64_t k = 0; k < inner;) {
      int codes = lane_codes;  // half of them where half a vector of words remains
      if (codes == 8 && k + 8 * lanes > inner) codes = 4;
      const int64_t base = k / group;
      table->base.push_back(int32_t(base));
      for (int64_t lane = 0; lane < lanes; ++lane)
        table->index.push_back(int32_t(std::min(k + lane * codes, inner - 1) / group - base));
      k += int64_t(codes) * lanes;
    }
  }
  return {table->base.data(), table->index.data()};
}

}  // namespace

#if defined(__x86_64__)
bool has_vbmi() {
  static const bool found = __builtin_cpu_supports("avx512vbmi");
  return found;
}
#endif

bool has_level(int level) {
  switch (level) {
    case kPlain:
      return true;
#if defined(__x86_64__)
    case kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    case kAvx512:
      return has_level(kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case kVnni:
      return has_level(kAvx512) && __builtin_cpu_supports("avx512vnni");
#endif
#if defined(__aarch64__)
    case kNeon:
      return true;
#endif
    default:
      return false;
  }
}

int best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  for (int level : {kNeon, kVnni, kAvx512, kAvx2})
    if (has_level(level)) return level;
  return kPlain;
}

int level() { return g_level; }
void set_level(int level) { g_level = level; }
const Kernels& kernels() { return *kTables[g_level]; }

Packed packed(Kind kind, const void* codes, const void* scales, const void* mins, int64_t out,
              int64_t inner, int bits, int group, bool half) {
  Packed w{};
  w.kind = kind;
  w.codes = static_cast<const uint8_t*>(codes);
  w.scales = scales;
  w.mins = mins;
  w.out = out;
  w.inner = inner;
  w.bits = bits;
  w.half = half;
  w.group = kind == Kind::kCodes ? group : int(inner);
  w.groups = int(inner / w.group);
  w.row_bytes = (inner * bits + 7) / 8;
  if (kind != Kind::kCodes) return w;
  for (int level = 0; level < kLevels; ++level) {
    const Kernels* table = kTables[level];
    if (table == nullptr || !has_level(level)) continue;
    if (table->splits(w)) {
      w.nibbles[level] = lane_groups(inner, group, table->lanes, 8);
      continue;
    }
    if (group % table->lanes != 0) w.bytes[level] = lane_groups(inner, group, table->lanes, 1);
    if (table->rounds(w)) w.quads[level] = lane_groups(inner, group, table->lanes, 4);
  }
  return w;
}

int64_t scratch_bytes(const Packed& w) { return 4 * w.inner + 8 * (w.groups + 32) + 256; }

void* Scratch::at_least(int64_t bytes) {
  constexpr int64_t kLine = 64;
  if (int64_t(held_.size()) < bytes + kLine) held_.resize(bytes + kLine);
  return held_.data() + (kLine - reinterpret_cast<uintptr_t>(held_.data()) % kLine) % kLine;
}

uint8_t* scratch(int64_t bytes) {
  static thread_local Scratch held;
  return static_cast<uint8_t*>(held.at_least(bytes));
}

float* floats(int64_t count) {
  static thread_local Scratch held;
  return static_cast<float*>(held.at_least(count * 4));
}

// Whether two weights read the same rounded rows of x.
bool alike(const Packed& a, const Packed& b) {
  const Kernels& k = kernels();
  return a.group == b.group && k.splits(a) == k.splits(b);
}

// Floats that rounded rows take for one weight, whole lines of memory.
int64_t rounded_floats(const Packed& w, int rows) {
  const Kernels& k = kernels();
  const int64_t floats = k.number_bytes(w) / 4 + k.step_floats(w) + whole(w.groups, kPad);
  return whole(floats * rows, kPad) + kPad;
}

int64_t prepared_floats(const std::vector<const Packed*>& weights, int rows, bool rounded) {
  const Kernels& k = kernels();
  int64_t floats = 0;
  if (rounded) {
    std::vector<const Packed*> others;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!k.rounds(*weights[i])) {
        others.push_back(weights[i]);
        continue;
      }
      bool is_new = true;
      for (size_t j = 0; j < i; ++j) is_new &= !k.rounds(*weights[j]) || !alike(*weights[j], *weights[i]);
      if (is_new) floats += rounded_floats(*weights[i], rows);
    }
    return others.empty() ? floats : floats + prepared_floats(others, rows, false);
  }
  bool split = false, plain = false;
  const int64_t inner = weights[0]->inner;
  for (size_t i = 0; i < weights.size(); ++i) {
    (k.splits(*weights[i]) ? split : plain) = true;
    bool is_new = weights[i]->kind == Kind::kCodes;
    for (size_t j = 0; j < i; ++j) is_new &= weights[j]->group != weights[i]->group;
    if (is_new) floats += whole(weights[i]->groups, kPad);
  }
  if (split) floats += whole(inner, kPad);
  if (plain && (rows > 1 || inner % kPad)) floats += whole(inner, kPad);
  return floats * rows;
}

void prepare(const std::vector<const Packed*>& weights, const float* x, int64_t x_stride, int rows,
             bool rounded, float* to, std::vector<Rows>& found) {
  const Kernels& k = kernels();
  const int64_t inner = weights[0]->inner, wide = whole(inner, kPad);
  const float *split = nullptr, *plain = nullptr;
  const auto is_rounded = [&](const Packed& w) { return rounded && k.rounds(w); };
  for (const Packed* w : weights) {
    if (is_rounded(*w)) continue;
    const bool is_split = k.splits(*w);
    const float*& place = is_split ? split : plain;
    if (place != nullptr) continue;
    place = x;
    if (!is_split && rows == 1 && inner % kPad == 0) continue;  // it lies as it is wanted
    k.arrange(x, x_stride, rows, inner, is_split, to);
    place = to;
    to += rows * wide;
  }
  found.clear();
  for (size_t i = 0; i < weights.size(); ++i) {
    const Packed& w = *weights[i];
    Rows p{plain, split, nullptr, whole(w.groups, kPad), rows};
    if (is_rounded(w)) {
      for (size_t j = 0; j < i && p.numbers == nullptr; ++j)
        if (found[j].numbers != nullptr && alike(*weights[j], w)) p = found[j];
      if (p.numbers == nullptr) {
        float* steps = to + k.number_bytes(w) / 4 * rows;
        float* sums = steps + k.step_floats(w) * rows;
        p.numbers = reinterpret_cast<int8_t*>(to);
        p.steps = steps;
        p.sums = sums;
        k.round_rows(w, x, x_stride, rows, reinterpret_cast<int8_t*>(to), steps, sums,
                     p.sums_stride, scratch(scratch_bytes(w)));
        to += rounded_floats(w, rows);
      }
      found.push_back(p);
      continue;
    }
    for (size_t j = 0; j < i && p.sums == nullptr; ++j)
      if (found[j].numbers == nullptr && weights[j]->kind == Kind::kCodes &&
          weights[j]->group == w.group)
        p.sums = found[j].sums;
    if (p.sums == nullptr && w.kind == Kind::kCodes) {
      for (int m = 0; m < rows; ++m) {
        float* sums = to + m * p.sums_stride;
        k.sum_groups(x + m * x_stride, inner, w.group, sums);
        std::fill_n(sums + w.groups, p.sums_stride - w.groups, 0.0f);
      }
      p.sums = to;
      to += rows * p.sums_stride;
    }
    found.push_back(p);
  }
}

namespace {

// Calls body(index of a product, from, to) for the part of from..to that each product has.
template <class Body>
void each_product(std::span<const Product> list, int64_t from, int64_t to, Body&& body) {
  int64_t base = 0;
  for (size_t i = 0; i < list.size() && base < to; ++i) {
    const int64_t first = std::max<int64_t>(from - base, 0);
    const int64_t last = std::min(to - base, list[i].weight->out);
    if (first < last) body(i, first, last);
    base += list[i].weight->out;
  }
}

int64_t outputs_of(std::span<const Product> list) {
  int64_t outputs = 0;
  for (const Product& p : list) outputs += p.weight->out;
  return outputs;
}

}  // namespace

int64_t product_step(const Packed& w, int64_t outputs) {
  constexpr int64_t kMostBytes = 65536;
  const int64_t most = std::max<int64_t>(16, kMostBytes / std::max<int64_t>(1, w.row_bytes));
  return std::clamp<int64_t>(outputs / (8 * crew_size()), 16, most) / 2 * 2;
}

int64_t gemm_step(int64_t outputs) {
  const int64_t lanes = kernels().lanes, vectors = (outputs + lanes - 1) / lanes;
  return lanes * std::clamp<int64_t>(vectors / (8 * crew_size()), 2, 4);
}

void product_piece(const Product& p, const Rows& rows, int64_t from, int64_t to) {
  kernels().product(*p.weight, rows, from, to, p.out, p.stride, p.add,
                    scratch(scratch_bytes(*p.weight)));
}

void gemm_piece(const Product& p, const float* x, int64_t x_stride, int64_t rows, int64_t from,
                int64_t to, float* arena, int64_t arena_floats) {
  kernels().gemm({x, x_stride, rows, p.weight, from, to, p.out, p.stride, p.add, arena,
                  arena_floats});
}

void products(std::span<const Product> list, const std::vector<Rows>& rows) {
  const int64_t outputs = outputs_of(list);
  share(outputs, product_step(*list[0].weight, outputs), [&](int64_t from, int64_t to, int) {
    each_product(list, from, to, [&](size_t i, int64_t first, int64_t last) {
      product_piece(list[i], rows[i], first, last);
    });
  });
}

int workers_of(const Arena& arena, int64_t least) {
  return int(std::clamp<int64_t>(arena.count / least, 1, crew_size()));
}

void gemm(std::span<const Product> list, const float* x, int64_t x_stride, int64_t rows,
          const Arena& arena) {
  const int64_t outputs = outputs_of(list);
  const int workers = workers_of(arena, kernels().gemm_floats(list[0].weight->inner));
  const auto piece = [&](int64_t from, int64_t to, int worker) {
    each_product(list, from, to, [&](size_t i, int64_t first, int64_t last) {
      gemm_piece(list[i], x, x_stride, rows, first, last, arena.of(worker, workers),
                 arena.count / workers);
    });
  };
  if (workers < crew_size()) piece(0, outputs, 0);  // an arena for fewer than there are
  else share(outputs, gemm_step(outputs), piece);
}

}  // namespace loci

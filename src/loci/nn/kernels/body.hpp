// The kernels themselves, written once against the vectors of vec_*.hpp and compiled once for each
// set of instructions. Nothing here may come from a template of the standard library: the linker
// would keep one copy of it for all of them, with instructions that not every machine has.

#pragma once

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL _Pragma("unroll")
#endif

// Sums live in registers only where the function that makes them holds them.
#define INLINE inline __attribute__((always_inline))

constexpr int kStrip = 4;          // rows of x that share one decoding of a weight
constexpr int kHeads = 4;          // query heads that read a key together
constexpr int kBlock = 8 * W;      // 4-bit codes in a vector of words
constexpr int kTileColumns = kTileVectors * W;
constexpr int kFlashKeys = 128;    // stored tokens that flash scores at once
constexpr int kFetchTokens = 16;   // stored tokens to ask for before they are needed
constexpr int kAhead = 8192;       // bytes of codes to ask for before they are needed
constexpr int64_t kPanelFloats = 1 << 17;  // of a dequantised panel: half a usual second cache

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t whole(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// exp by the usual reduction to 2^n e^r with |r| <= ln2 / 2 and a polynomial; relative error below
// 2e-7 between -87 and 88, and clamped outside.
inline V exponential(V x) {
  x = least(most(x, set(-87.0f)), set(88.0f));
  V n = nearest(mul(x, set(1.44269504f)));
  V r = fma(n, set(-0.693359375f), x);
  r = fma(n, set(2.12194440e-4f), r);
  V p = set(1.9875691500e-4f);
  p = fma(p, r, set(1.3981999507e-3f));
  p = fma(p, r, set(8.3334519073e-3f));
  p = fma(p, r, set(4.1665795894e-2f));
  p = fma(p, r, set(1.6666665459e-1f));
  p = fma(p, r, set(5.0000001201e-1f));
  p = add(fma(mul(p, r), r, r), set(1.0f));
  return mul(p, power_of_two(n));
}

inline float exponential_one(float x) {
  float lanes[W];
  store(lanes, exponential(set(x)));
  return lanes[0];
}

// -- codes ------------------------------------------------------------------------------------

inline float number(const void* from, bool half, int64_t at) {
  return half ? half_to_float(static_cast<const uint16_t*>(from)[at])
              : static_cast<const float*>(from)[at];
}

// W numbers from `at` on; what lies behind the last one is read too.
template <bool H>
inline V numbers(const void* from, int64_t at) {
  return H ? halves(static_cast<const uint16_t*>(from) + at) : load(static_cast<const float*>(from) + at);
}

void unpack_slowly(const uint8_t* row, int64_t row_bytes, int bits, int64_t count, uint8_t* to) {
  const uint32_t mask = (1u << bits) - 1;
  uint64_t held = 0;
  int have = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    while (have < bits) {
      held |= uint64_t(at < row_bytes ? row[at] : 0) << have;
      ++at;
      have += 8;
    }
    to[i] = uint8_t(held & mask);
    held >>= bits;
    have -= bits;
  }
}

// Codes as bytes, in order; `row` begins on a byte.
void unpack(const uint8_t* row, int64_t row_bytes, int bits, int64_t count, uint8_t* to) {
  if (bits == 8) {
    std::memcpy(to, row, count);
    return;
  }
  int64_t i = 0;
#if LOCI_VBMI
  if (has_vbmi()) i = unpack_many(row, row_bytes, bits, count, to);
#endif
#if LOCI_PDEP
  // Eight codes are `bits` bytes: one deposit spreads them over eight bytes.
  const uint64_t spread = 0x0101010101010101ull * ((1u << bits) - 1);
  for (; i + 8 <= count && (i / 8) * bits + 8 <= row_bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, row + (i / 8) * bits, 8);
    uint64_t octet = _pdep_u64(word, spread);
    std::memcpy(to + i, &octet, 8);
  }
#endif
  if (i < count) {
    int64_t done = (i / 8) * bits;
    unpack_slowly(row + done, row_bytes - done, bits, count - i, to + i);
  }
}

bool splits(const Packed& w) {
  return w.kind == Kind::kCodes && w.bits == 4 && w.inner % (4 * W) == 0 && w.group % 8 == 0;
}

// Lane l of a vector of words holds eight codes in a row, code j at 16^j times its value when it is
// masked where it stands. So x is put into that order and divided by 16^j beforehand: exact, and a
// shift saved. Only the topmost code is shifted, because there the sign would be. Where half a
// vector remains, lanes hold four codes each.
inline void split_row(const float* x, int64_t inner, float* to, int64_t step) {
  int64_t k = 0;
  for (; k + kBlock <= inner; k += kBlock) spread(x + k, to + k / W * step, step);
  if (k < inner) {
    float power = 1.0f;
    for (int j = 0; j < 4; ++j, power /= 16.0f)
      for (int lane = 0; lane < W; ++lane)
        to[(k / W + j) * step + lane] = x[k + 4 * lane + j] * power;
  }
}

void arrange(const float* x, int64_t stride, int rows, int64_t inner, bool is_split, float* to) {
  const int64_t wide = whole(inner, kPad);
  for (int begin = 0; begin < rows; begin += kStrip) {
    const int many = int(smaller(kStrip, rows - begin));
    for (int m = 0; m < many; ++m) {
      const float* row = x + (begin + m) * stride;
      float* at = to + begin * wide + m * W;
      const int64_t step = int64_t(many) * W;
      if (is_split) {
        split_row(row, inner, at, step);
        continue;
      }
      int64_t k = 0;
      for (; k + W <= inner; k += W) store(at + k / W * step, load(row + k));
      for (; k < wide; ++k) at[k / W * step + k % W] = k < inner ? row[k] : 0.0f;
    }
  }
}

void sum_groups(const float* x, int64_t inner, int64_t group, float* to) {
  for (int64_t from = 0; from < inner; from += group) {
    V total = zero();
    int64_t k = from;
    for (; k + W <= from + group; k += W) total = add(total, load(x + k));
    float all = sum(total);
    for (; k < from + group; ++k) all += x[k];
    *to++ = all;
  }
}

// What takes codes out of words: code j of a lane stays where it stands.
struct Masks {
  I at[7];
};

// -- products ---------------------------------------------------------------------------------

// Consecutive rows of a weight, given by the first of them.
struct Piece {
  const uint8_t* codes;
  const void* scales;
  const void* shifts;    // minima, or scales again
  int64_t count;
};

// Where the results of a strip go.
struct Results {
  float* y;              // of the strip's first row of x and the piece's first row of the weight
  int64_t stride;
  bool add;
};

// Sums across vectors are put off until there are as many as a vector has lanes: one tree of
// additions then serves them all, and no row waits for the end of the one before.
template <int R>
class Pending {
 public:
  explicit Pending(const Results& to) : to_(to) {
    for (int i = 0; i < W; ++i) held_[i] = zero();
  }

  // Takes the sums of the next row of the weight.
  INLINE void take(const V* total) {
    UNROLL for (int m = 0; m < R; ++m) held_[rows_ * R + m] = total[m];
    if (++rows_ == W / R) flush();
  }

  void flush() {
    alignas(64) float found[W];
    const V all_sums = sums(held_);
    float* y = to_.y + done_;
    if (R == 1 && rows_ == W) {
      store(y, to_.add ? add(load(y), all_sums) : all_sums);
    } else {
      store(found, all_sums);
      for (int m = 0; m < R; ++m)
        for (int i = 0; i < rows_; ++i) {
          float* at = y + m * to_.stride + i;
          *at = to_.add ? *at + found[i * R + m] : found[i * R + m];
        }
    }
    done_ += rows_;
    rows_ = 0;
  }

 private:
  const Results& to_;
  V held_[W];
  int rows_ = 0;
  int64_t done_ = 0;
};

// What minima or zero points add: m * sum(x) over all groups.
template <int R, bool H>
INLINE void shift(const Packed& w, const void* shifts, int64_t at, const float* sums_of,
                  int64_t sums_stride, V* total) {
  UNROLL for (int m = 0; m < R; ++m) total[m] = zero();
  int64_t g = 0;
  for (; g < w.groups; g += W) {
    V s = numbers<H>(shifts, at + g);
    if (g + W > w.groups) s = keep(s, w.groups - g);
    UNROLL for (int m = 0; m < R; ++m) total[m] = fma(s, load(sums_of + m * sums_stride + g), total[m]);
  }
  if (w.mins != nullptr) return;
  const V zero_point = set(-float(1 << (w.bits - 1)));
  UNROLL for (int m = 0; m < R; ++m) total[m] = mul(total[m], zero_point);
}


// N rows of the weight with R rows of x. The codes of a group are added up before they are scaled.
template <int N, int R, bool H>
INLINE void nibble_products(const Packed& w, const uint8_t* row, const void* scales, int64_t at,
                            const float* x, const Masks& masks, V (*total)[R]) {
  const LaneGroups& lanes = w.nibbles[kLevel];
  const int64_t blocks = w.inner / kBlock;
  for (int64_t b = 0; b < blocks; ++b, x += kBlock * R) {
    I c[N];
    V part[N][R];
    UNROLL for (int i = 0; i < N; ++i) {
      c[i] = words(row + i * w.row_bytes + 4 * W * b);
      prefetch(row + i * w.row_bytes + 4 * W * b + kAhead);
    }
#define STEP(j, code)                                                                  \
  UNROLL for (int i = 0; i < N; ++i) {                                                 \
    const V q = code;                                                                  \
    UNROLL for (int m = 0; m < R; ++m) {                                               \
      const V xv = load(x + (j * R + m) * W);                                          \
      part[i][m] = j == 0 ? mul(q, xv) : fma(q, xv, part[i][m]);                       \
    }                                                                                  \
  }
    STEP(0, masked(c[i], masks.at[0]))
    STEP(1, masked(c[i], masks.at[1]))
    STEP(2, masked(c[i], masks.at[2]))
    STEP(3, masked(c[i], masks.at[3]))
    STEP(4, masked(c[i], masks.at[4]))
    STEP(5, masked(c[i], masks.at[5]))
    STEP(6, masked(c[i], masks.at[6]))
    STEP(7, topmost<4>(c[i]))
    UNROLL for (int i = 0; i < N; ++i) {
      const V s = pick(numbers<H>(scales, at + i * w.groups + lanes.base[b]), lanes.index + W * b);
      UNROLL for (int m = 0; m < R; ++m) total[i][m] = fma(s, part[i][m], total[i][m]);
    }
  }
  if (blocks * kBlock == w.inner) return;
  I c[N];
  V part[N][R];
  UNROLL for (int i = 0; i < N; ++i) c[i] = shorts(row + i * w.row_bytes + 4 * W * blocks);
  STEP(0, masked(c[i], masks.at[0]))
  STEP(1, masked(c[i], masks.at[1]))
  STEP(2, masked(c[i], masks.at[2]))
  STEP(3, masked(c[i], masks.at[3]))
#undef STEP
  UNROLL for (int i = 0; i < N; ++i) {
    const V s = pick(numbers<H>(scales, at + i * w.groups + lanes.base[blocks]), lanes.index + W * blocks);
    UNROLL for (int m = 0; m < R; ++m) total[i][m] = fma(s, part[i][m], total[i][m]);
  }
}

template <int R, bool H>
void nibble_rows(const Packed& w, const Piece& piece, const float* x, const float* sums_of,
                 int64_t sums_stride, const Results& to, uint8_t*) {
  Masks masks;
  UNROLL for (int j = 0; j < 7; ++j) masks.at[j] = all(0xF << (4 * j));
  const uint8_t* row = piece.codes;
  Pending<R> results(to);
  int64_t n = 0;
  for (; n + 2 <= piece.count; n += 2, row += 2 * w.row_bytes) {  // so that no sum waits for itself
    V total[2][R];
    shift<R, H>(w, piece.shifts, n * w.groups, sums_of, sums_stride, total[0]);
    shift<R, H>(w, piece.shifts, (n + 1) * w.groups, sums_of, sums_stride, total[1]);
    nibble_products<2, R, H>(w, row, piece.scales, n * w.groups, x, masks, total);
    results.take(total[0]);
    results.take(total[1]);
  }
  if (n < piece.count) {
    V total[1][R];
    shift<R, H>(w, piece.shifts, n * w.groups, sums_of, sums_stride, total[0]);
    nibble_products<1, R, H>(w, row, piece.scales, n * w.groups, x, masks, total);
    results.take(total[0]);
  }
  results.flush();
}

// Codes of 8 bits, or unpacked to them; groups of whole vectors.
template <int R, bool H>
void grouped_rows(const Packed& w, const Piece& piece, const float* x, const float* sums_of,
                  int64_t sums_stride, const Results& to, uint8_t* scratch) {
  Pending<R> results(to);
  const uint8_t* row = piece.codes;
  const int64_t vectors = w.group / W;
  for (int64_t n = 0; n < piece.count; ++n, row += w.row_bytes) {
    const uint8_t* q = row;
    if (w.bits != 8) {
      unpack(row, w.row_bytes, w.bits, w.inner, scratch);
      q = scratch;
    }
    const int64_t at = n * w.groups;
    V total[R];
    shift<R, H>(w, piece.shifts, at, sums_of, sums_stride, total);
    const float* xv = x;
    for (int64_t first = 0; first < w.groups; first += W) {
      alignas(64) float scales[W];
      store(scales, numbers<H>(piece.scales, at + first));
      const int64_t many = smaller(W, w.groups - first);
      for (int64_t g = 0; g < many; ++g) {
        const V s = set(scales[g]);
        prefetch(q + kAhead);
        V part[R];
        UNROLL for (int m = 0; m < R; ++m) part[m] = zero();
        for (int64_t k = 0; k < vectors; ++k, q += W, xv += R * W) {
          const V v = bytes(q);
          UNROLL for (int m = 0; m < R; ++m) part[m] = fma(v, load(xv + m * W), part[m]);
        }
        UNROLL for (int m = 0; m < R; ++m) total[m] = fma(s, part[m], total[m]);
      }
    }
    results.take(total);
  }
  results.flush();
}

// The same for groups of any size: every lane looks up its own scale.
template <int R, bool H>
void ragged_rows(const Packed& w, const Piece& piece, const float* x, const float* sums_of,
                 int64_t sums_stride, const Results& to, uint8_t* scratch) {
  const LaneGroups& lanes = w.bytes[kLevel];
  Pending<R> results(to);
  const uint8_t* row = piece.codes;
  for (int64_t n = 0; n < piece.count; ++n, row += w.row_bytes) {
    unpack(row, w.row_bytes, w.bits, w.inner, scratch);
    const int64_t at = n * w.groups;
    V total[R];
    shift<R, H>(w, piece.shifts, at, sums_of, sums_stride, total);
    for (int64_t b = 0; b * W < w.inner; ++b) {
      const V s = pick(numbers<H>(piece.scales, at + lanes.base[b]), lanes.index + W * b);
      const V v = mul(bytes(scratch + W * b), s);
      UNROLL for (int m = 0; m < R; ++m) total[m] = fma(v, load(x + (b * R + m) * W), total[m]);
    }
    results.take(total);
  }
  results.flush();
}

template <Kind K>
INLINE V plain_numbers(const uint8_t* row, int64_t k) {
  if (K == Kind::kFloat32) return load(reinterpret_cast<const float*>(row) + k);
  const uint16_t* short_row = reinterpret_cast<const uint16_t*>(row) + k;
  return K == Kind::kFloat16 ? halves(short_row) : brains(short_row);
}

template <int R, Kind K>
void plain_rows(const Packed& w, const Piece& piece, const float* x, const float*, int64_t,
                const Results& to, uint8_t*) {
  Pending<R> results(to);
  const uint8_t* row = piece.codes;
  for (int64_t n = 0; n < piece.count; ++n, row += w.row_bytes) {
    V total[R];
    UNROLL for (int m = 0; m < R; ++m) total[m] = zero();
    for (int64_t k = 0; k < w.inner; k += W) {
      V v = plain_numbers<K>(row, k);
      if (k + W > w.inner) v = keep(v, w.inner - k);
      UNROLL for (int m = 0; m < R; ++m) total[m] = fma(v, load(x + k * R + m * W), total[m]);
    }
    results.take(total);
  }
  results.flush();
}

// -- products of whole numbers ----------------------------------------------------------------

constexpr int kShared = 8;  // numbers that share a step

inline float larger_of(float a, float b) { return a > b ? a : b; }

bool rounds(const Packed& w) {
  return w.kind == Kind::kCodes && w.group % kShared == 0 &&
         (splits(w) || w.inner % (4 * W) == 0);
}

// Blocks are vectors of codes: 8 W of them in words, two vectors of x each; else 4 W, one each.
int64_t number_bytes(const Packed& w) { return splits(w) ? whole(w.inner, kBlock) : w.inner; }
int64_t step_floats(const Packed& w) { return number_bytes(w) / (splits(w) ? 8 : 4); }

// One row of x as whole numbers, -127 to 127, in order; a step for every kShared of them.
inline void round_row(const float* x, int64_t inner, int64_t group, int8_t* to, float* steps,
                      float* sums) {
  for (int64_t from = 0, g = 0; from < inner; from += group, ++g) {
    float all = 0.0f;
    for (int64_t k = from; k < from + group; k += kShared) {
      float largest = 0.0f;
      for (int i = 0; i < kShared; ++i) largest = larger_of(largest, std::fabs(x[k + i]));
      const float step = largest / 127.0f, back = largest > 0 ? 127.0f / largest : 0.0f;
      int32_t numbers[kShared], total = 0;
      for (int i = 0; i < kShared; ++i) numbers[i] = int32_t(std::nearbyint(x[k + i] * back));
      for (int i = 0; i < kShared; ++i) {
        to[k + i] = int8_t(numbers[i]);
        total += numbers[i];
      }
      steps[k / kShared] = step;
      all += step * float(total);
    }
    sums[g] = all;
  }
}

void round_rows(const Packed& w, const float* x, int64_t stride, int rows, int8_t* numbers,
                float* steps, float* sums, int64_t sums_stride, uint8_t* scratch) {
  constexpr int kVector = 4 * W;  // numbers in a vector
  const bool is_split = splits(w);
  const int64_t codes = is_split ? 8 : 4, blocks = w.inner / (codes * W);
  const int64_t row_bytes = number_bytes(w), row_steps = step_floats(w);
  int8_t* ordered = reinterpret_cast<int8_t*>(scratch);
  float* shared = reinterpret_cast<float*>(ordered + whole(w.inner, 64));
  for (int begin = 0; begin < rows; begin += kStrip) {
    const int many = int(smaller(kStrip, rows - begin));
    for (int m = 0; m < many; ++m) {
      float* row_sums = sums + (begin + m) * sums_stride;
      round_row(x + (begin + m) * stride, w.inner, w.group, ordered, shared, row_sums);
      for (int64_t g = w.groups; g < sums_stride; ++g) row_sums[g] = 0.0f;
      int8_t* to = numbers + begin * row_bytes + m * kVector;
      float* step = steps + begin * row_steps + m * W;
      const int64_t next = int64_t(many) * kVector, next_step = int64_t(many) * W;
      const int8_t* from = ordered;
      int64_t b = 0;
      for (; b < blocks; ++b) {
        if (is_split) {
          for (int i = 0; i < kVector; ++i) to[i] = from[2 * i];
          for (int i = 0; i < kVector; ++i) to[next + i] = from[2 * i + 1];
        } else {
          std::memcpy(to, from, kVector);
        }
        for (int l = 0; l < W; ++l) step[l] = shared[(b * codes * W + l * codes) / kShared];
        from += codes * W;
        to += is_split ? 2 * next : next;
        step += next_step;
      }
      if (blocks * codes * W == w.inner) continue;
      std::memset(to, 0, kVector);  // four codes a lane: two of each vector of x
      std::memset(to + next, 0, kVector);
      for (int l = 0; l < W; ++l) {
        to[4 * l] = from[4 * l];
        to[4 * l + 1] = from[4 * l + 2];
        to[next + 4 * l] = from[4 * l + 1];
        to[next + 4 * l + 1] = from[4 * l + 3];
        step[l] = shared[(b * codes * W + 4 * l) / kShared];
      }
    }
  }
}

// N rows of the weight with R rows of x: the low halves of bytes meet even places, the high odd.
template <int N, int R, bool H>
INLINE void nibble_dots(const Packed& w, const uint8_t* row, const void* scales, int64_t at,
                        const int8_t* x, const float* steps, V (*total)[R]) {
  constexpr int kVector = 4 * W;
  const LaneGroups& lanes = w.nibbles[kLevel];
  const int64_t blocks = w.inner / kBlock, most_blocks = whole(w.inner, kBlock) / kBlock;
  for (int64_t b = 0; b < most_blocks; ++b, x += 2 * R * kVector, steps += R * W) {
    UNROLL for (int i = 0; i < N; ++i) {
      const uint8_t* from = row + i * w.row_bytes + 4 * W * b;
      const I c = b < blocks ? words(from) : shorts(from);
      prefetch(from + kAhead);
      const I low = low_halves(c), high = high_halves(c);
      const V s = pick(numbers<H>(scales, at + i * w.groups + lanes.base[b]), lanes.index + W * b);
      UNROLL for (int m = 0; m < R; ++m) {
        const I part = dots(dots(none(), low, x + m * kVector), high, x + (R + m) * kVector);
        total[i][m] = fma(mul(s, load(steps + m * W)), as_floats(part), total[i][m]);
      }
    }
  }
}

template <int N, int R, bool H>
INLINE void byte_dots(const Packed& w, const uint8_t* const* row, const void* scales, int64_t at,
                      const int8_t* x, const float* steps, V (*total)[R]) {
  constexpr int kVector = 4 * W;
  const LaneGroups& lanes = w.quads[kLevel];
  const int64_t blocks = w.inner / kVector;
  for (int64_t b = 0; b < blocks; ++b, x += R * kVector, steps += R * W) {
    UNROLL for (int i = 0; i < N; ++i) {
      const uint8_t* from = row[i] + kVector * b;
      const I c = words(from);
      prefetch(from + kAhead);
      const V s = pick(numbers<H>(scales, at + i * w.groups + lanes.base[b]), lanes.index + W * b);
      UNROLL for (int m = 0; m < R; ++m) {
        const I part = dots(none(), c, x + m * kVector);
        total[i][m] = fma(mul(s, load(steps + m * W)), as_floats(part), total[i][m]);
      }
    }
  }
}

template <int N, int R, bool H>
INLINE void whole_rows_of(const Packed& w, const Piece& piece, int64_t n, bool nibbles,
                          const int8_t* x, const float* steps, const float* sums_of,
                          int64_t sums_stride, Pending<R>& results, uint8_t* scratch) {
  V total[N][R];
  const uint8_t* row = piece.codes + n * w.row_bytes;
  UNROLL for (int i = 0; i < N; ++i)
    shift<R, H>(w, piece.shifts, (n + i) * w.groups, sums_of, sums_stride, total[i]);
  if (nibbles) {
    nibble_dots<N, R, H>(w, row, piece.scales, n * w.groups, x, steps, total);
  } else {
    const uint8_t* rows[N];
    for (int i = 0; i < N; ++i) {
      rows[i] = row + i * w.row_bytes;
      if (w.bits == 8) continue;
      unpack(rows[i], w.row_bytes, w.bits, w.inner, scratch + i * w.inner);
      rows[i] = scratch + i * w.inner;
    }
    byte_dots<N, R, H>(w, rows, piece.scales, n * w.groups, x, steps, total);
  }
  UNROLL for (int i = 0; i < N; ++i) results.take(total[i]);
}

template <int R, bool H>
void whole_rows(const Packed& w, const Piece& piece, const int8_t* x, const float* steps,
                const float* sums_of, int64_t sums_stride, const Results& to, uint8_t* scratch) {
  const bool nibbles = splits(w);
  Pending<R> results(to);
  int64_t n = 0;
  for (; n + 2 <= piece.count; n += 2)  // so that no sum waits for itself
    whole_rows_of<2, R, H>(w, piece, n, nibbles, x, steps, sums_of, sums_stride, results, scratch);
  if (n < piece.count)
    whole_rows_of<1, R, H>(w, piece, n, nibbles, x, steps, sums_of, sums_stride, results, scratch);
  results.flush();
}

using WholeStrip = void (*)(const Packed&, const Piece&, const int8_t*, const float*, const float*,
                            int64_t, const Results&, uint8_t*);
constexpr WholeStrip kWholeStrips[][2] = {{whole_rows<1, false>, whole_rows<1, true>},
                                          {whole_rows<2, false>, whole_rows<2, true>},
                                          {whole_rows<3, false>, whole_rows<3, true>},
                                          {whole_rows<4, false>, whole_rows<4, true>}};

using Strip = void (*)(const Packed&, const Piece&, const float*, const float*, int64_t,
                       const Results&, uint8_t*);

template <int R>
Strip strip_of(const Packed& w, bool nibbles) {
  if (w.kind == Kind::kFloat32) return plain_rows<R, Kind::kFloat32>;
  if (w.kind == Kind::kFloat16) return plain_rows<R, Kind::kFloat16>;
  if (w.kind == Kind::kBfloat16) return plain_rows<R, Kind::kBfloat16>;
  if (nibbles) return w.half ? nibble_rows<R, true> : nibble_rows<R, false>;
  if (w.group % W == 0) return w.half ? grouped_rows<R, true> : grouped_rows<R, false>;
  return w.half ? ragged_rows<R, true> : ragged_rows<R, false>;
}

constexpr Strip (*kStrips[])(const Packed&, bool) = {
    strip_of<1>, strip_of<2>, strip_of<3>, strip_of<4>};

// The last row of a weight, copied to where reading on does no harm.
inline Piece last_piece(const Packed& w, uint8_t*& free) {
  const int64_t n = w.out - 1;
  const auto copy = [&](const void* source, int64_t size) -> const void* {
    if (source == nullptr) return nullptr;
    void* place = std::memcpy(free, static_cast<const uint8_t*>(source) + n * size, size);
    free += whole(size + 4 * W, 64);
    return place;
  };
  const int64_t size = int64_t(w.groups) * (w.half ? 2 : 4);
  Piece piece{w.codes + n * w.row_bytes, copy(w.scales, size), nullptr, 1};
  piece.shifts = w.mins == nullptr ? piece.scales : copy(w.mins, size);
  if (w.inner % W) piece.codes = static_cast<const uint8_t*>(copy(w.codes, w.row_bytes));
  return piece;
}

void product(const Packed& w, const Rows& p, int64_t from, int64_t to, float* y, int64_t stride,
             bool add_to, uint8_t* scratch) {
  constexpr int64_t kNear = 16;  // rows of the weight that stay in the first cache
  const bool nibbles = p.split != nullptr && splits(w);
  const float* x = nibbles ? p.split : p.x;
  const int64_t wide = whole(w.inner, kPad), size = int64_t(w.groups) * (w.half ? 2 : 4);
  const uint8_t* scales = static_cast<const uint8_t*>(w.scales);
  const uint8_t* shifts = w.mins == nullptr ? scales : static_cast<const uint8_t*>(w.mins);
  const int64_t step = p.rows <= kStrip ? to - from : kNear;
  for (int64_t n = from; n < to;) {
    int64_t end = smaller(n + step, to);
    Piece piece{w.codes + n * w.row_bytes, scales + n * size, shifts + n * size, end - n};
    uint8_t* free = scratch;
    if (end == w.out && n + 1 < end) piece.count = --end - n;
    else if (end == w.out) piece = last_piece(w, free);
    for (int m = 0; m < p.rows; m += kStrip) {
      const int many = int(smaller(kStrip, p.rows - m));
      if (p.numbers != nullptr) {
        kWholeStrips[many - 1][w.half](w, piece, p.numbers + m * number_bytes(w),
                                       p.steps + m * step_floats(w), p.sums + m * p.sums_stride,
                                       p.sums_stride, {y + m * stride + n, stride, add_to}, free);
        continue;
      }
      kStrips[many - 1](w, nibbles)(w, piece, x + m * wide, p.sums + m * p.sums_stride, p.sums_stride,
                                    {y + m * stride + n, stride, add_to}, free);
    }
    n = end;
  }
}

// -- dequantised rows -------------------------------------------------------------------------

// Inputs from..to of one row; `from` is a multiple of 8. The product and the sum are rounded one
// after the other, as the reference does.
void decode(const Packed& w, int64_t n, int64_t from, int64_t to, float* out, uint8_t* scratch) {
  const uint8_t* row = w.codes + n * w.row_bytes;
  if (w.kind != Kind::kCodes) {
    int64_t k = from;
    if (w.kind == Kind::kFloat32) {
      std::memcpy(out, reinterpret_cast<const float*>(row) + from, (to - from) * 4);
      return;
    }
    const uint16_t* h = reinterpret_cast<const uint16_t*>(row);
    const bool is_half = w.kind == Kind::kFloat16;
    for (; k + W <= to; k += W) store(out + k - from, is_half ? halves(h + k) : brains(h + k));
    for (; k < to; ++k) out[k - from] = is_half ? half_to_float(h[k]) : brain_to_float(h[k]);
    return;
  }
  const uint8_t* q = row + from;
  if (w.bits != 8) {
    const int64_t skipped = from / 8 * w.bits;
    unpack(row + skipped, w.row_bytes - skipped, w.bits, to - from, scratch);
    q = scratch;
  }
  const float zero_point = float(1 << (w.bits - 1));
  for (int64_t k = from; k < to;) {
    const int64_t g = k / w.group, end = smaller((g + 1) * w.group, to);
    const float s = number(w.scales, w.half, n * w.groups + g);
    const float m = w.mins == nullptr ? 0.0f : number(w.mins, w.half, n * w.groups + g);
    const uint8_t* qk = q + k - from;
    float* o = out + k - from;
    const int64_t count = end - k;
    int64_t i = 0;
    if (w.mins == nullptr) {  // zero is taken from the code before it is scaled: exact
      for (; i + W <= count; i += W) store(o + i, mul(sub(bytes(qk + i), set(zero_point)), set(s)));
      for (; i < count; ++i) o[i] = (float(qk[i]) - zero_point) * s;
    } else {
      for (; i + W <= count; i += W) store(o + i, add(mul(bytes(qk + i), set(s)), set(m)));
      for (; i < count; ++i) o[i] = float(qk[i]) * s + m;
    }
    k = end;
  }
}

void dequantise(const Packed& w, int64_t n, float* to, uint8_t* scratch) {
  decode(w, n, 0, w.inner, to, scratch);
}

// -- matrix products of many rows -------------------------------------------------------------

// c [M, N vectors] = or += a [M, count] b [count, N vectors].
template <int M, int N>
void tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count,
          float* c, int64_t c_stride, bool add_to) {
  V total[M][N];
  UNROLL for (int i = 0; i < M; ++i) {
    UNROLL for (int j = 0; j < N; ++j) {
      total[i][j] = add_to ? load(c + i * c_stride + j * W) : zero();
    }
  }
  for (int64_t k = 0; k < count; ++k) {
    V row[N];
    UNROLL for (int j = 0; j < N; ++j) row[j] = load(b + k * b_stride + j * W);
    UNROLL for (int i = 0; i < M; ++i) {
      const V x = set(a[i * a_stride + k]);
      UNROLL for (int j = 0; j < N; ++j) total[i][j] = fma(x, row[j], total[i][j]);
    }
  }
  UNROLL for (int i = 0; i < M; ++i) {
    UNROLL for (int j = 0; j < N; ++j) store(c + i * c_stride + j * W, total[i][j]);
  }
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, int64_t, float*, int64_t, bool);
#define TILES(M) \
  {tile<(M), 1>, tile<(M), 2>, tile<(M), kTileVectors - 1>, tile<(M), kTileVectors>}
constexpr Tile kTiles[][4] = {TILES(1), TILES(2), TILES(3), TILES(4),
                              TILES(5 > kTileRows ? 1 : 5), TILES(6 > kTileRows ? 1 : 6)};
#undef TILES

inline Tile tile_of(int64_t rows, int vectors) {
  return kTiles[rows - 1][vectors == kTileVectors ? 3 : vectors - 1];
}

// Rows before they are transposed, bytes of codes, one panel.
inline int64_t gemm_depth_floats(int64_t depth) {
  return depth * W + depth / 4 + 16 + depth * kTileColumns;
}

int64_t gemm_floats(int64_t inner) {
  return kTileRows * kTileColumns + gemm_depth_floats(smaller(whole(inner, 16), 512));
}

// Scales or minima of W rows as columns: [group][row]. Rows beyond the last are the last again.
template <bool H>
void scale_columns(const Packed& w, const void* from, int64_t row, int64_t g0, int64_t g1, float* to) {
  for (int64_t g = g0; g < g1; g += W) {
    const int64_t many = smaller(W, g1 - g);
    V block[W];
    for (int64_t i = 0; i < W; ++i) {
      const int64_t at = smaller(row + i, w.out - 1) * w.groups + g;
      if (at + W <= w.out * w.groups) {
        block[i] = numbers<H>(from, at);
      } else {  // nothing behind the last one may be read
        float lanes[W] = {};
        for (int64_t j = 0; j < many; ++j) lanes[j] = number(from, H, at + j);
        block[i] = load(lanes);
      }
    }
    transpose(block);
    for (int64_t i = 0; i < many; ++i) store(to + (g - g0 + i) * W, block[i]);
  }
}

// Codes of `Bits` bits, `Codes` to a word, of W rows: inputs from..to as columns of a panel.
template <int Bits>
void code_columns(const Packed& w, const uint8_t* const* rows, int64_t row_bytes, int64_t from,
                  int64_t to, const float* scales, const float* mins, const Masks& masks, float* column) {
  constexpr int kCodes = 32 / Bits;
  const int64_t g0 = from / w.group, depth = to - from;
  for (int64_t k = 0; k < depth; k += kCodes * W) {
    V block[W];
    const int64_t at = k * Bits / 8, left = row_bytes - at;
    for (int i = 0; i < W; ++i) {
      if (left >= 4 * W) {
        block[i] = as_numbers(words(rows[i] + at));
      } else {
        uint8_t rest[4 * W] = {};
        std::memcpy(rest, rows[i] + at, left);
        block[i] = as_numbers(words(rest));
      }
    }
    transpose(block);
    for (int64_t d = 0; d < W && k + d * kCodes < depth; ++d) {
      const int64_t input = k + d * kCodes, g = (from + input) / w.group - g0;
      const V s = load(scales + g * W), m = load(mins + g * W);
      const I c = as_words(block[d]);
      float* place = column + input * kTileColumns;
      float power = 1.0f;
      UNROLL for (int j = 0; j < kCodes; ++j) {
        const bool is_top = j + 1 == kCodes;
        const V q = is_top ? topmost<Bits>(c) : masked(c, masks.at[j]);
        store(place + j * kTileColumns, fma(q, mul(s, set(is_top ? 1.0f : power)), m));
        power /= float(1 << Bits);
      }
    }
  }
}

// W rows of a weight as columns, by transposed codes; `room` holds whole(depth, 16) * W floats.
// False where groups are so small that a word of codes has two.
bool packed_columns(const Packed& w, int64_t row, int64_t from, int64_t to, float* room, float* column) {
  const bool nibbles = w.bits == 4;
  if (w.kind != Kind::kCodes || w.group % (nibbles ? 8 : 16) != 0) return false;
  const int64_t g0 = from / w.group, g1 = (to - 1) / w.group + 1, depth = to - from;
  float *scales = room, *mins = scales + (g1 - g0) * W;
  uint8_t* bytes_of = reinterpret_cast<uint8_t*>(mins + (g1 - g0) * W);
  (w.half ? scale_columns<true> : scale_columns<false>)(w, w.scales, row, g0, g1, scales);
  if (w.mins != nullptr) {
    (w.half ? scale_columns<true> : scale_columns<false>)(w, w.mins, row, g0, g1, mins);
  } else {
    const V zero_point = set(-float(1 << (w.bits - 1)));
    for (int64_t i = 0; i < (g1 - g0) * W; i += W) store(mins + i, mul(load(scales + i), zero_point));
  }
  const uint8_t* rows[W];
  const int64_t skipped = from / 8 * w.bits, wide = whole(depth, 64);
  for (int64_t i = 0; i < W; ++i) {
    rows[i] = w.codes + smaller(row + i, w.out - 1) * w.row_bytes + skipped;
    if (nibbles || w.bits == 8) continue;
    unpack(rows[i], w.row_bytes - skipped, w.bits, depth, bytes_of + i * wide);
    rows[i] = bytes_of + i * wide;
  }
  Masks masks;
  if (nibbles) {
    UNROLL for (int j = 0; j < 7; ++j) masks.at[j] = all(0xF << (4 * j));
    code_columns<4>(w, rows, w.row_bytes - skipped, from, to, scales, mins, masks, column);
  } else {
    UNROLL for (int j = 0; j < 3; ++j) masks.at[j] = all(0xFF << (8 * j));
    const int64_t held = w.bits == 8 ? w.row_bytes - skipped : wide;
    code_columns<8>(w, rows, held, from, to, scales, mins, masks, column);
  }
  return true;
}

// Weight rows at..at+count, inputs from..to, as columns of panels: [panel][input][column].
void panels(const Packed& w, int64_t at, int64_t count, int64_t from, int64_t to, float* rows,
            float* panel, uint8_t* scratch) {
  const int64_t depth = to - from, padded = whole(depth, W);
  for (int64_t c = 0; c < whole(count, W); c += W) {
    float* column = panel + c / kTileColumns * kTileColumns * depth + c % kTileColumns;
    if (packed_columns(w, at + c, from, to, rows, column)) continue;
    for (int64_t i = 0; i < W; ++i)
      decode(w, smaller(at + c + i, w.out - 1), from, to, rows + i * padded, scratch);
    for (int64_t k = 0; k < depth; k += W) {
      V block[W];
      for (int i = 0; i < W; ++i) block[i] = load(rows + i * padded + k);
      transpose(block);
      for (int64_t i = 0; i < smaller(W, depth - k); ++i)
        store(column + (k + i) * kTileColumns, block[i]);
    }
  }
}

// A few panels of dequantised weights stay in the second cache while all rows of x pass by.
void gemm(const Gemm& g) {
  const Packed& w = *g.weight;
  float* edge = g.arena;
  float* rows = edge + kTileRows * kTileColumns;
  const int64_t room = g.arena_floats - kTileRows * kTileColumns;
  int64_t depth = whole(w.inner, 16);
  while (depth > 512 && (gemm_depth_floats(depth) > room || depth * kTileColumns > kPanelFloats))
    depth = whole(depth / 2, 16);
  uint8_t* scratch = reinterpret_cast<uint8_t*>(rows + depth * W);
  float* panel = rows + depth * W + depth / 4 + 16;
  const int64_t space = smaller(room - (panel - rows), kPanelFloats);
  const int64_t wide = larger(1, space / (depth * kTileColumns)) * kTileColumns;
  for (int64_t n = g.first; n < g.last; n += wide) {
    const int64_t columns = smaller(wide, g.last - n);
    for (int64_t from = 0; from < w.inner; from += depth) {
      const int64_t to = smaller(from + depth, w.inner);
      panels(w, n, columns, from, to, rows, panel, scratch);
      const bool add_to = g.add || from > 0;
      for (int64_t m = 0; m < g.rows; m += kTileRows) {
        const int64_t high = smaller(kTileRows, g.rows - m);
        const float* x = g.x + m * g.x_stride + from;
        for (int64_t c = 0; c < columns; c += kTileColumns) {
          const float* b = panel + c * (to - from);
          float* y = g.y + m * g.y_stride + n + c;
          const int64_t left = smaller(kTileColumns, columns - c);
          const Tile product = tile_of(high, int(whole(left, W) / W));
          if (left % W == 0) {
            product(x, g.x_stride, b, kTileColumns, to - from, y, g.y_stride, add_to);
            continue;
          }
          product(x, g.x_stride, b, kTileColumns, to - from, edge, kTileColumns, false);
          for (int64_t i = 0; i < high; ++i)
            for (int64_t j = 0; j < left; ++j) {
              const float value = edge[i * kTileColumns + j];
              y[i * g.y_stride + j] = add_to ? y[i * g.y_stride + j] + value : value;
            }
        }
      }
    }
  }
}

// -- the steps between products ---------------------------------------------------------------

void rms(const float* x, const float* weight, float eps, float offset, int64_t size, float* out) {
  V squares = zero();
  int64_t i = 0;
  for (; i + W <= size; i += W) squares = fma(load(x + i), load(x + i), squares);
  float total = sum(squares);
  for (; i < size; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / float(size) + eps);
  for (i = 0; i + W <= size; i += W)
    store(out + i, mul(mul(load(x + i), set(scale)), add(load(weight + i), set(offset))));
  for (; i < size; ++i) out[i] = x[i] * scale * (weight[i] + offset);
}

inline V silu_of(V g) { return div(g, add(set(1.0f), exponential(sub(zero(), g)))); }

inline V gelu_of(V g) {  // by its tanh formula
  V cube = mul(mul(g, g), g);
  V t = mul(set(0.7978845608f), fma(set(0.044715f), cube, g));
  V tanh = sub(set(1.0f), div(set(2.0f), add(set(1.0f), exponential(add(t, t)))));
  return mul(mul(set(0.5f), g), add(set(1.0f), tanh));
}

template <V (*F)(V)>
void gate_with(float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(gate + i, mul(F(load(gate + i)), load(up + i)));
  if (i < count) {
    float lanes[W] = {};
    for (int64_t j = i; j < count; ++j) lanes[j - i] = gate[j];
    store(lanes, F(load(lanes)));
    for (int64_t j = i; j < count; ++j) gate[j] = lanes[j - i] * up[j];
  }
}

void silu(float* gate, const float* up, int64_t count) { gate_with<silu_of>(gate, up, count); }
void gelu(float* gate, const float* up, int64_t count) { gate_with<gelu_of>(gate, up, count); }

// One head: channel i pairs with i + size / 2; `out` may be x.
void rope(const float* x, const float* cos, const float* sin, int64_t size, float* out) {
  const int64_t half = size / 2;
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    const V low = load(x + i), high = load(x + i + half);
    const V c_low = load(cos + i), s_low = load(sin + i);
    const V c_high = load(cos + i + half), s_high = load(sin + i + half);
    store(out + i, sub(mul(low, c_low), mul(high, s_low)));
    store(out + i + half, add(mul(high, c_high), mul(low, s_high)));
  }
  for (; i < half; ++i) {
    const float low = x[i], high = x[i + half];
    out[i] = low * cos[i] - high * sin[i];
    out[i + half] = high * cos[i + half] + low * sin[i + half];
  }
}

void add_span(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store(to + i, add(load(to + i), load(from + i)));
  for (; i < count; ++i) to[i] += from[i];
}

void to_half(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + W <= count; i += W) store_halves(to + i, load(from + i));
  for (; i < count; ++i) to[i] = float_to_half(from[i]);
}

// The first of the largest.
int64_t argmax(const float* x, int64_t count) {
  V best = set(x[0]);
  int64_t i = 0;
  for (; i + W <= count; i += W) best = most(best, load(x + i));
  float largest = top(best);
  for (; i < count; ++i) largest = x[i] > largest ? x[i] : largest;
  for (i = 0; i < count; ++i)
    if (x[i] == largest) return i;
  return 0;
}

// -- attention --------------------------------------------------------------------------------

// Asks for a row of keys or values before it is needed: pages are small, and what the machine
// fetches by itself ends with each.
template <bool H>
INLINE void fetch(const void* from, int64_t at, int64_t size) {
  const char* p = static_cast<const char*>(from) + at * (H ? 2 : 4);
  for (int64_t b = 0; b < size * (H ? 2 : 4); b += 64) prefetch(p + b);
}

// Scores of G queries against `count` keys, at most kChunkTokens; a row of scores a query.
template <int G, bool H>
INLINE void score(const float* q, int64_t q_head, const void* keys, int64_t at, int64_t stride,
                  int64_t count, int64_t size, float scale, float (*scores)[kChunkTokens]) {
  const int64_t even = size / W * W;
  for (int64_t s = 0; s < count; s += W) {
    const int64_t many = smaller(W, count - s);
    V dots[G][W];
    for (int64_t i = 0; i < many; ++i) {
      const int64_t key = at + (s + i) * stride;
      fetch<H>(keys, key + kFetchTokens * stride, size);
      int64_t d = 0;
      V dot[G];
      UNROLL for (int g = 0; g < G; ++g) dot[g] = zero();
      for (; d + 4 * W <= even; d += 4 * W) {
        UNROLL for (int j = 0; j < 4; ++j) {
          const V k = numbers<H>(keys, key + d + j * W);
          UNROLL for (int g = 0; g < G; ++g)
            dot[g] = fma(load(q + g * q_head + d + j * W), k, dot[g]);
        }
      }
      for (; d < even; d += W) {
        const V k = numbers<H>(keys, key + d);
        UNROLL for (int g = 0; g < G; ++g) dot[g] = fma(load(q + g * q_head + d), k, dot[g]);
      }
      UNROLL for (int g = 0; g < G; ++g) dots[g][i] = dot[g];
    }
    for (int64_t i = many; i < W; ++i) {
      UNROLL for (int g = 0; g < G; ++g) dots[g][i] = zero();
    }
    for (int g = 0; g < G; ++g) {
      float* row = scores[g] + s;
      store(row, sums(dots[g]));
      for (int64_t i = 0; i < many && even < size; ++i)
        for (int64_t d = even; d < size; ++d)
          row[i] += q[g * q_head + d] * number(keys, H, at + (s + i) * stride + d);
      store(row, mul(load(row), set(scale)));
      for (int64_t i = many; i < W; ++i) row[i] = -HUGE_VALF;
    }
  }
}

// outs[g] = outs[g] * factors[g] + the weights of `count` tokens times their values.
template <int G, bool H>
INLINE void weigh(const float (*weights)[kChunkTokens], const void* values, int64_t at,
                  int64_t stride, int64_t count, int64_t size, const float* factors, float* outs,
                  int64_t out_head) {
  int64_t d = 0;
  for (; d + 4 * W <= size; d += 4 * W) {
    V total[G][4];
    UNROLL for (int g = 0; g < G; ++g) {
      UNROLL for (int j = 0; j < 4; ++j)
        total[g][j] = mul(load(outs + g * out_head + d + j * W), set(factors[g]));
    }
    for (int64_t s = 0; s < count; ++s) {
      const int64_t value = at + s * stride + d;
      fetch<H>(values, value + kFetchTokens * stride, 4 * W);
      V v[4];
      UNROLL for (int j = 0; j < 4; ++j) v[j] = numbers<H>(values, value + j * W);
      UNROLL for (int g = 0; g < G; ++g) {
        const V p = set(weights[g][s]);
        UNROLL for (int j = 0; j < 4; ++j) total[g][j] = fma(p, v[j], total[g][j]);
      }
    }
    UNROLL for (int g = 0; g < G; ++g) {
      UNROLL for (int j = 0; j < 4; ++j) store(outs + g * out_head + d + j * W, total[g][j]);
    }
  }
  for (int g = 0; g < G; ++g) {
    float* out = outs + g * out_head;
    int64_t e = d;
    for (; e + W <= size; e += W) {
      V total = mul(load(out + e), set(factors[g]));
      for (int64_t s = 0; s < count; ++s)
        total = fma(set(weights[g][s]), numbers<H>(values, at + s * stride + e), total);
      store(out + e, total);
    }
    for (; e < size; ++e) {
      float total = out[e] * factors[g];
      for (int64_t s = 0; s < count; ++s) total += weights[g][s] * number(values, H, at + s * stride + e);
      out[e] = total;
    }
  }
}

// Before the first chunk: no weights, no largest score.
template <int G>
INLINE void clear(float* part, int64_t wide) {
  for (int g = 0; g < G; ++g) {
    for (int64_t d = 0; d < wide; ++d) part[g * wide + d] = 0;
    part[g * wide + wide - 2] = -HUGE_VALF;
  }
}

// The scores of a chunk become weights; `factors` are what the sums so far are scaled by.
template <int G>
INLINE void weights_of(float (*scores)[kChunkTokens], int64_t count, int64_t wide, float* part,
                       float* factors) {
  for (int g = 0; g < G; ++g) {
    float* statistics = part + g * wide + wide - 2;
    V highest = set(statistics[0]);
    for (int64_t s = 0; s < count; s += W) highest = most(highest, load(scores[g] + s));
    const float peak = top(highest);
    factors[g] = peak == statistics[0] ? 1.0f : exponential_one(statistics[0] - peak);
    V weights = zero();
    for (int64_t s = 0; s < count; s += W) {
      V p = exponential(sub(load(scores[g] + s), set(peak)));
      if (count - s < W) p = keep(p, count - s);
      store(scores[g] + s, p);
      weights = add(weights, p);
    }
    statistics[1] = statistics[1] * factors[g] + sum(weights);
    statistics[0] = peak;
  }
}

// G query heads of one KV head. A row of `part` is a head: weighted values, largest score, sum of
// weights.
template <int G, bool H>
void attend_heads(const float* q, int64_t q_head, const Stored& kv, int64_t kv_head, int64_t from,
                  int64_t to, int64_t size, float scale, float* part) {
  alignas(64) float scores[G][kChunkTokens];
  const int64_t wide = size + 2;
  clear<G>(part, wide);
  for (int64_t begin = from; begin < to; begin += kChunkTokens) {
    const int64_t count = smaller(kChunkTokens, to - begin);
    score<G, H>(q, q_head, kv.k, kv_head * kv.k_head + begin * kv.k_token, kv.k_token, count, size,
                scale, scores);
    float factors[G];
    weights_of<G>(scores, count, wide, part, factors);
    weigh<G, H>(scores, kv.v, kv_head * kv.v_head + begin * kv.v_token, kv.v_token, count, size,
                factors, part, wide);
  }
}

// A number of query heads that is known when the code is compiled.
template <int N>
struct Heads {
  static constexpr int many = N;
};

// Calls each(Heads<N>, first) for query heads in runs of at most kHeads.
template <class Each>
INLINE void in_runs(int64_t groups, const Each& each) {
  for (int64_t g = 0; g < groups;) {
    const int64_t left = smaller(groups - g, kHeads);
    if (left == 1) each(Heads<1>{}, g);
    else if (left == 2) each(Heads<2>{}, g);
    else if (left == 3) each(Heads<3>{}, g);
    else each(Heads<4>{}, g);
    g += left;
  }
}

template <bool H>
void attend_with(const float* q, int64_t q_head, int64_t groups, const Stored& kv, int64_t kv_head,
                 int64_t from, int64_t to, int64_t size, float scale, float* part) {
  in_runs(groups, [&](auto run, int64_t g) {
    attend_heads<run.many, H>(q + g * q_head, q_head, kv, kv_head, from, to, size, scale,
                              part + g * (size + 2));
  });
}

void attend(const float* q, int64_t q_head, int64_t groups, const Stored& kv, int64_t kv_head,
            int64_t from, int64_t to, int64_t size, float scale, float* part) {
  if (kv.half) attend_with<true>(q, q_head, groups, kv, kv_head, from, to, size, scale, part);
  else attend_with<false>(q, q_head, groups, kv, kv_head, from, to, size, scale, part);
}

// What codes of one side of a chunk stand for: low + step * (q - middle).
struct Mantissas {
  const uint8_t* exponents;
  const float* powers;
  int64_t blocks;
  float middle;

  float step(int64_t s, int64_t b) const { return powers[exponents[s * blocks + b]]; }
  float low(int64_t, int64_t) const { return 0; }
};

struct Grids {
  const uint16_t* grid;  // low and step, block by block
  int64_t blocks;
  static constexpr float middle = 0;

  float step(int64_t s, int64_t b) const { return half_to_float(grid[2 * (s * blocks + b) + 1]); }
  float low(int64_t s, int64_t b) const { return half_to_float(grid[2 * (s * blocks + b)]); }
};

// Dots of W tokens, or fewer, become scores.
template <int G>
INLINE void put_scores(V (*dots)[W], int64_t at, int64_t many, const float* more, float scale,
                       float (*scores)[kChunkTokens]) {
  for (int g = 0; g < G; ++g) {
    for (int64_t i = many; i < W; ++i) dots[g][i] = zero();
    store(scores[g] + at, mul(add(sums(dots[g]), set(more[g])), set(scale)));
    for (int64_t i = many; i < W; ++i) scores[g][at + i] = -HUGE_VALF;
  }
}

// As `score`, of codes a byte each in blocks of whole vectors.
template <int G>
INLINE void score_codes(const float* q, int64_t q_head, const uint8_t* codes, const Mantissas& of,
                        int64_t block, int64_t count, int64_t size, float scale,
                        float (*scores)[kChunkTokens]) {
  const V middle = set(of.middle);
  const float none[G] = {};
  for (int64_t s = 0; s < count; s += W) {
    const int64_t many = smaller(W, count - s);
    V dots[G][W];
    for (int64_t i = 0; i < many; ++i) {
      const uint8_t* key = codes + (s + i) * size;
      V dot[G];
      UNROLL for (int g = 0; g < G; ++g) dot[g] = zero();
      for (int64_t b = 0; b < of.blocks; ++b) {
        V part[G];
        UNROLL for (int g = 0; g < G; ++g) part[g] = zero();
        for (int64_t d = b * block; d < (b + 1) * block; d += W) {
          const V k = sub(bytes(key + d), middle);
          UNROLL for (int g = 0; g < G; ++g) part[g] = fma(load(q + g * q_head + d), k, part[g]);
        }
        const V power = set(of.step(s + i, b));
        UNROLL for (int g = 0; g < G; ++g) dot[g] = fma(part[g], power, dot[g]);
      }
      UNROLL for (int g = 0; g < G; ++g) dots[g][i] = dot[g];
    }
    put_scores<G>(dots, s, many, none, scale, scores);
  }
}

// The same of keys whose grids go by channel: queries take the steps, and their products with the
// lows are one number a group of tokens. `turned` is room for G rows of `size`.
template <int G>
INLINE void score_grids(const float* q, int64_t q_head, const uint8_t* codes, const uint16_t* grids,
                        int64_t group, int64_t share, int64_t count, int64_t size, float scale,
                        float (*scores)[kChunkTokens], float* turned) {
  for (int64_t first = 0; first < count; first += group) {
    const uint16_t* lows = grids + first * share;
    float more[G];
    UNROLL for (int g = 0; g < G; ++g) {
      V total = zero();
      for (int64_t d = 0; d < size; d += W) {
        const V x = load(q + g * q_head + d);
        total = fma(x, halves(lows + d), total);
        store(turned + g * size + d, mul(x, halves(lows + size + d)));
      }
      more[g] = sum(total);
    }
    const int64_t end = smaller(count, first + group);
    for (int64_t s = first; s < end; s += W) {
      const int64_t many = smaller(W, end - s);
      V dots[G][W];
      for (int64_t i = 0; i < many; ++i) {
        const uint8_t* key = codes + (s + i) * size;
        V dot[G];
        UNROLL for (int g = 0; g < G; ++g) dot[g] = zero();
        for (int64_t d = 0; d < size; d += W) {
          const V k = bytes(key + d);
          UNROLL for (int g = 0; g < G; ++g) dot[g] = fma(load(turned + g * size + d), k, dot[g]);
        }
        UNROLL for (int g = 0; g < G; ++g) dots[g][i] = dot[g];
      }
      put_scores<G>(dots, s, many, more, scale, scores);
    }
  }
}

// N vectors of channels of `weigh_codes`, at d.
template <int G, int N>
INLINE void weigh_vectors(const float (*scaled)[kChunkTokens], const uint8_t* codes, float middle,
                          const float* more, int64_t count, int64_t size, const float* factors,
                          float* outs, int64_t out_head) {
  V total[G][N];
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int j = 0; j < N; ++j)
      total[g][j] = fma(load(outs + g * out_head + j * W), set(factors[g]), set(more[g]));
  }
  for (int64_t s = 0; s < count; ++s) {
    V v[N];
    UNROLL for (int j = 0; j < N; ++j) v[j] = sub(bytes(codes + s * size + j * W), set(middle));
    UNROLL for (int g = 0; g < G; ++g) {
      const V p = set(scaled[g][s]);
      UNROLL for (int j = 0; j < N; ++j) total[g][j] = fma(p, v[j], total[g][j]);
    }
  }
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int j = 0; j < N; ++j) store(outs + g * out_head + j * W, total[g][j]);
  }
}

// As `weigh`, of codes a byte each in blocks of whole vectors.
template <int G, class Of>
INLINE void weigh_codes(const float (*weights)[kChunkTokens], const uint8_t* codes, const Of& of,
                        int64_t block, int64_t count, int64_t size, const float* factors, float* outs,
                        int64_t out_head) {
  alignas(64) float scaled[G][kChunkTokens];
  for (int64_t b = 0; b < of.blocks; ++b) {
    float more[G] = {};
    for (int64_t s = 0; s < count; ++s) {
      const float step = of.step(s, b), low = of.low(s, b);
      UNROLL for (int g = 0; g < G; ++g) {
        scaled[g][s] = weights[g][s] * step;
        more[g] += weights[g][s] * low;
      }
    }
    int64_t d = b * block;
    for (; d + 4 * W <= (b + 1) * block; d += 4 * W)
      weigh_vectors<G, 4>(scaled, codes + d, of.middle, more, count, size, factors, outs + d, out_head);
    for (; d < (b + 1) * block; d += W)
      weigh_vectors<G, 1>(scaled, codes + d, of.middle, more, count, size, factors, outs + d, out_head);
  }
}

// Codes of tokens from..from+count, a byte each.
inline const uint8_t* code_bytes(const uint8_t* packed, int bits, int64_t from, int64_t count,
                                 int64_t size, uint8_t* to) {
  const int64_t row = whole(size * bits, 8) / 8;
  const uint8_t* at = packed + from * row;
  if (bits == 8) return at;
  if (size * bits % 8 == 0) unpack(at, count * row, bits, count * size, to);
  else
    for (int64_t s = 0; s < count; ++s) unpack(at + s * row, row, bits, size, to + s * size);
  return to;
}

// Codes one by one, for heads and blocks that are no whole vectors.
template <class Of>
void decode_codes(const uint8_t* codes, const Of& of, int64_t block, int64_t count, int64_t size,
                  float* to) {
  for (int64_t s = 0; s < count; ++s)
    for (int64_t d = 0; d < size; ++d)
      to[s * size + d] = of.low(s, d / block) + of.step(s, d / block) * (float(codes[s * size + d]) - of.middle);
}

inline void decode_grids(const uint8_t* codes, const uint16_t* grids, int64_t group, int64_t share,
                         int64_t count, int64_t size, float* to) {
  for (int64_t s = 0; s < count; ++s) {
    const uint16_t* lows = grids + s / group * group * share;
    for (int64_t d = 0; d < size; ++d)
      to[s * size + d] = half_to_float(lows[d]) + half_to_float(lows[size + d]) * float(codes[s * size + d]);
  }
}

template <int G>
void attend_coded(const float* q, int64_t q_head, const Coded& kv, int64_t from, int64_t to, int64_t size,
                  float scale, float* part, uint8_t* scratch) {
  alignas(64) float scores[G][kChunkTokens];
  const int64_t wide = size + 2, blocks = size / kv.block;
  const bool direct = kv.block % W == 0 && size % W == 0, gridded = kv.k_grid != nullptr;
  float* numbers = reinterpret_cast<float*>(scratch);
  uint8_t* room = scratch + kChunkTokens * size * 4;
  clear<G>(part, wide);
  for (int64_t begin = from; begin < to; begin += kChunkTokens) {
    const int64_t count = smaller(kChunkTokens, to - begin);
    const float middle = float(1 << (kv.bits - 1));
    const int64_t powers = gridded ? 0 : begin * blocks, grids = gridded ? begin : 0;
    const Mantissas k_of{kv.k_exponents + powers, kv.powers, blocks, middle};
    const Mantissas v_of{kv.v_exponents + powers, kv.powers, blocks, middle};
    const Grids v_grids{kv.v_grid + 2 * grids * blocks, blocks};
    const uint16_t* k_grids = kv.k_grid + grids * kv.k_share;
    const uint8_t* keys = code_bytes(kv.k, kv.bits, begin, count, size, room);
    if (direct && gridded)
      score_grids<G>(q, q_head, keys, k_grids, kv.group, kv.k_share, count, size, scale, scores, numbers);
    else if (direct) score_codes<G>(q, q_head, keys, k_of, kv.block, count, size, scale, scores);
    else {
      if (gridded) decode_grids(keys, k_grids, kv.group, kv.k_share, count, size, numbers);
      else decode_codes(keys, k_of, kv.block, count, size, numbers);
      score<G, false>(q, q_head, numbers, 0, size, count, size, scale, scores);
    }
    float factors[G];
    weights_of<G>(scores, count, wide, part, factors);
    const uint8_t* values = code_bytes(kv.v, kv.bits, begin, count, size, room);
    if (direct && gridded)
      weigh_codes<G>(scores, values, v_grids, kv.block, count, size, factors, part, wide);
    else if (direct) weigh_codes<G>(scores, values, v_of, kv.block, count, size, factors, part, wide);
    else {
      if (gridded) decode_codes(values, v_grids, kv.block, count, size, numbers);
      else decode_codes(values, v_of, kv.block, count, size, numbers);
      weigh<G, false>(scores, numbers, 0, size, count, size, factors, part, wide);
    }
  }
}

void attend_codes(const float* q, int64_t q_head, int64_t groups, const Coded& kv, int64_t from,
                  int64_t to, int64_t size, float scale, float* part, uint8_t* scratch) {
  in_runs(groups, [&](auto run, int64_t g) {
    attend_coded<run.many>(q + g * q_head, q_head, kv, from, to, size, scale, part + g * (size + 2),
                           scratch);
  });
}

// Signs of a Hadamard matrix as large as a vector, row by row: -1 where the places have an odd
// number of bits in common.
struct Signs {
  float at[W * W];
  constexpr Signs() : at() {
    for (int i = 0; i < W; ++i)
      for (int j = 0; j < W; ++j) {
        int odd = 0;
        for (int both = i & j; both > 0; both >>= 1) odd ^= both & 1;
        at[i * W + j] = odd ? -1.0f : 1.0f;
      }
  }
};
constexpr Signs kSigns;

// x = H x, with H a Hadamard matrix of ones; size is a power of two, and whole vectors.
inline void turn(float* x, int64_t size) {
  for (int64_t d = 0; d < size; d += W) {
    V total = zero();
    UNROLL for (int j = 0; j < W; ++j) total = fma(set(x[d + j]), load(kSigns.at + j * W), total);
    store(x + d, total);
  }
  for (int64_t half = W; half < size; half *= 2)
    for (int64_t first = 0; first < size; first += 2 * half)
      for (int64_t d = first; d < first + half; d += W) {
        const V low = load(x + d), high = load(x + d + half);
        store(x + d, add(low, high));
        store(x + d + half, sub(low, high));
      }
}

// Scales of W tokens, or of as many as there are.
INLINE V scales_of(const uint16_t* scales, int64_t many) {
  if (many >= W) return halves(scales);
  uint16_t held[W] = {};
  for (int64_t i = 0; i < many; ++i) held[i] = scales[i];
  return halves(held);
}

// Codes of turned tokens are read where they lie: P of them to a byte, of 8 / P bits, or a byte each
// once unpacked. W bytes hold W P codes; code j of byte i is number i P + j. Queries are put into the
// order in which vectors come out of them, j by j, and sums are taken back out of it.
template <int P>
void split_codes(const float* x, int64_t size, float* to) {
  for (int64_t d = 0; d < size; d += W * P)
    for (int j = 0; j < P; ++j)
      for (int i = 0; i < W; ++i) to[d + j * W + i] = x[d + i * P + j];
}

template <int P>
void join_codes(const float* x, int64_t size, float* to) {
  for (int64_t d = 0; d < size; d += W * P)
    for (int j = 0; j < P; ++j)
      for (int i = 0; i < W; ++i) to[d + i * P + j] = x[d + j * W + i];
}

// Vectors of levels that W bytes stand for.
template <int P>
INLINE void name_codes(const Sixteen& levels, const uint8_t* p, V* to) {
  const I words = wide(p);
  to[0] = named<0>(levels, words);
  if constexpr (P > 1) to[1] = named<8 / P>(levels, words);
  if constexpr (P > 2) {
    to[2] = named<16 / P>(levels, words);
    to[3] = named<24 / P>(levels, words);
  }
}

// As `score`, of queries that are turned and split, one behind the other; `more` is what the mean
// of the keys adds.
template <int G, int P>
INLINE void score_levels(const float* q, const uint8_t* codes, const Sixteen& levels,
                         const uint16_t* scales, const float* more, int64_t count, int64_t size,
                         float scale, float (*scores)[kChunkTokens]) {
  for (int64_t s = 0; s < count; s += W) {
    const int64_t many = smaller(W, count - s);
    V dots[G][W];
    for (int64_t i = 0; i < many; ++i) {
      const uint8_t* key = codes + (s + i) * (size / P);
      V dot[G];
      UNROLL for (int g = 0; g < G; ++g) dot[g] = zero();
      for (int64_t d = 0; d < size; d += W * P) {
        V k[P];
        name_codes<P>(levels, key + d / P, k);
        UNROLL for (int g = 0; g < G; ++g) {
          UNROLL for (int j = 0; j < P; ++j)
            dot[g] = fma(load(q + g * size + d + j * W), k[j], dot[g]);
        }
      }
      UNROLL for (int g = 0; g < G; ++g) dots[g][i] = dot[g];
    }
    const V steps = scales_of(scales + s, many);
    for (int g = 0; g < G; ++g) {
      for (int64_t i = many; i < W; ++i) dots[g][i] = zero();
      store(scores[g] + s, mul(fma(sums(dots[g]), steps, set(more[g])), set(scale)));
      for (int64_t i = many; i < W; ++i) scores[g][s + i] = -HUGE_VALF;
    }
  }
}

// B times W P numbers of `weigh_levels`, at d.
template <int G, int P, int B>
INLINE void weigh_named(const float (*scaled)[kChunkTokens], const uint8_t* codes,
                        const Sixteen& levels, int64_t count, int64_t row, const float* factors,
                        float* outs, int64_t out_head) {
  V total[G][B * P];
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int j = 0; j < B * P; ++j)
      total[g][j] = mul(load(outs + g * out_head + j * W), set(factors[g]));
  }
  for (int64_t s = 0; s < count; ++s) {
    V v[B * P];
    UNROLL for (int b = 0; b < B; ++b) name_codes<P>(levels, codes + s * row + b * W, v + b * P);
    UNROLL for (int g = 0; g < G; ++g) {
      const V p = set(scaled[g][s]);
      UNROLL for (int j = 0; j < B * P; ++j) total[g][j] = fma(p, v[j], total[g][j]);
    }
  }
  UNROLL for (int g = 0; g < G; ++g) {
    UNROLL for (int j = 0; j < B * P; ++j) store(outs + g * out_head + j * W, total[g][j]);
  }
}

// As `weigh`, into sums that are joined and turned back later.
template <int G, int P>
INLINE void weigh_levels(const float (*weights)[kChunkTokens], const uint8_t* codes,
                         const Sixteen& levels, const uint16_t* scales, int64_t count, int64_t size,
                         const float* factors, float* outs, int64_t out_head) {
  constexpr int B = 4 / P;
  alignas(64) float scaled[G][kChunkTokens];
  for (int64_t s = 0; s < count; s += W) {
    const V steps = scales_of(scales + s, count - s);
    UNROLL for (int g = 0; g < G; ++g) store(scaled[g] + s, mul(load(weights[g] + s), steps));
  }
  const int64_t row = size / P;
  int64_t d = 0;
  for (; d + B * P * W <= size; d += B * P * W)
    weigh_named<G, P, B>(scaled, codes + d / P, levels, count, row, factors, outs + d, out_head);
  for (; d < size; d += P * W)
    weigh_named<G, P, 1>(scaled, codes + d / P, levels, count, row, factors, outs + d, out_head);
}

// Codes to a byte as kernels read them; 1 where they are unpacked first.
inline int codes_in_byte(int bits, int64_t size) {
  const int many = bits == 4 ? 2 : bits == 2 ? 4 : 1;
  return size % (W * many) == 0 ? many : 1;
}

template <int G>
void attend_turned(const float* q, int64_t q_head, const Levels& kv, int64_t from, int64_t to,
                   int64_t size, float scale, float* part, uint8_t* scratch) {
  alignas(64) float scores[G][kChunkTokens];
  const int64_t wide = size + 2;
  float* turned = reinterpret_cast<float*>(scratch);
  float* spare = turned + G * size;
  uint8_t* room = scratch + (G + 1) * size * 4;
  const Sixteen keys_of = sixteen(kv.k_levels), values_of = sixteen(kv.v_levels);
  const int k_many = codes_in_byte(kv.k_bits, size), v_many = codes_in_byte(kv.v_bits, size);
  float more[G];
  for (int g = 0; g < G; ++g) {
    V of_mean = zero();
    for (int64_t d = 0; d < size; d += W) {
      const V x = load(q + g * q_head + d);
      of_mean = fma(x, halves(kv.k_mean + d), of_mean);
      store(spare + d, mul(x, load(kv.signs + d)));
    }
    more[g] = sum(of_mean);
    turn(spare, size);
    if (k_many == 2) split_codes<2>(spare, size, turned + g * size);
    else if (k_many == 4) split_codes<4>(spare, size, turned + g * size);
    else std::memcpy(turned + g * size, spare, size * 4);
  }
  clear<G>(part, wide);
  for (int64_t begin = from; begin < to; begin += kChunkTokens) {
    const int64_t count = smaller(kChunkTokens, to - begin);
    const uint16_t* k_scales = kv.k_scales + begin;
    const uint8_t* keys = kv.k + begin * (size / k_many);
    if (k_many == 2) score_levels<G, 2>(turned, keys, keys_of, k_scales, more, count, size, scale, scores);
    else if (k_many == 4) score_levels<G, 4>(turned, keys, keys_of, k_scales, more, count, size, scale, scores);
    else {
      keys = code_bytes(kv.k, kv.k_bits, begin, count, size, room);
      score_levels<G, 1>(turned, keys, keys_of, k_scales, more, count, size, scale, scores);
    }
    float factors[G];
    weights_of<G>(scores, count, wide, part, factors);
    const uint16_t* v_scales = kv.v_scales + begin;
    const uint8_t* values = kv.v + begin * (size / v_many);
    if (v_many == 2) weigh_levels<G, 2>(scores, values, values_of, v_scales, count, size, factors, part, wide);
    else if (v_many == 4) weigh_levels<G, 4>(scores, values, values_of, v_scales, count, size, factors, part, wide);
    else {
      values = code_bytes(kv.v, kv.v_bits, begin, count, size, room);
      weigh_levels<G, 1>(scores, values, values_of, v_scales, count, size, factors, part, wide);
    }
  }
  for (int g = 0; g < G; ++g) {
    float* out = part + g * wide;
    const V weights = set(out[wide - 1]);
    if (v_many == 2) join_codes<2>(out, size, spare);
    else if (v_many == 4) join_codes<4>(out, size, spare);
    else std::memcpy(spare, out, size * 4);
    turn(spare, size);
    for (int64_t d = 0; d < size; d += W)
      store(out + d, fma(weights, halves(kv.v_mean + d), mul(load(spare + d), load(kv.signs + d))));
  }
}

void attend_levels(const float* q, int64_t q_head, int64_t groups, const Levels& kv, int64_t from,
                   int64_t to, int64_t size, float scale, float* part, uint8_t* scratch) {
  in_runs(groups, [&](auto run, int64_t g) {
    attend_turned<run.many>(q + g * q_head, q_head, kv, from, to, size, scale, part + g * (size + 2),
                            scratch);
  });
}

// Rounds a row to levels: of several sizes of its root mean square, the one after which least is
// left. With codes given the best scale is x . level / level . level, and it takes that times
// x . level from the error.
void round_levels(const float* x, int64_t size, const float* levels, int bits, const float* sizes,
                  int tries, uint8_t* codes, uint16_t* scale) {
  const int count = 1 << bits;
  V edge[16], step[16];
  for (int j = 1; j < count; ++j) {
    edge[j] = set(0.5f * (levels[j] + levels[j - 1]));
    step[j] = set(levels[j] - levels[j - 1]);
  }
  V squares = zero();
  for (int64_t d = 0; d < size; d += W) squares = fma(load(x + d), load(x + d), squares);
  const float rms = larger_of(std::sqrt(sum(squares) / float(size)), 1e-12f);
  float most = -1.0f, best = 1.0f, fitted = 0.0f;
  for (int t = 0; t < tries; ++t) {
    const V inverse = set(1.0f / (rms * sizes[t]));
    V product = zero(), energy = zero();
    for (int64_t d = 0; d < size; d += W) {
      const V u = load(x + d), scaled = mul(u, inverse);
      V level = set(levels[0]);
      for (int j = 1; j < count; ++j) level = add_above(level, scaled, edge[j], step[j]);
      product = fma(u, level, product);
      energy = fma(level, level, energy);
    }
    const float along = sum(product), length = sum(energy);
    if (along * along / length <= most) continue;
    most = along * along / length;
    best = sizes[t];
    fitted = along / length;
  }
  *scale = float_to_half(fitted);
  const V inverse = set(1.0f / (rms * best)), one = set(1.0f);
  std::memset(codes, 0, (size * bits + 7) / 8);
  for (int64_t d = 0; d < size; d += W) {
    const V scaled = mul(load(x + d), inverse);
    V code = zero();
    for (int j = 1; j < count; ++j) code = add_above(code, scaled, edge[j], one);
    float found[W];
    store(found, code);
    for (int i = 0; i < W; ++i) {
      const int64_t bit = (d + i) * bits;
      const unsigned placed = unsigned(found[i]) << (bit & 7);
      codes[bit >> 3] |= uint8_t(placed);
      if ((bit & 7) + bits > 8) codes[(bit >> 3) + 1] |= uint8_t(placed >> 8);
    }
  }
}

// Codes of `count` numbers in classes of equally many bits, a byte each; nothing is read at `end`
// or behind it.
inline void class_bytes(const uint8_t* row, const uint8_t* end, const uint8_t* bits, int64_t count,
                        uint8_t* to) {
  for (int64_t i = 0; i < count;) {
    int64_t stop = i + 8;
    while (stop < count && bits[stop] == bits[i]) stop += 8;
    const int b = bits[i];
    for (; i < stop; i += 8, row += b) {
#if LOCI_PDEP
      if (row + 8 <= end) {
        uint64_t word;
        std::memcpy(&word, row, 8);
        const uint64_t octet = _pdep_u64(word, 0x0101010101010101ull * ((1u << b) - 1));
        std::memcpy(to + i, &octet, 8);
        continue;
      }
#endif
      unpack_slowly(row, b, b, 8, to + i);
    }
  }
}

// Numbers of tokens from..from+count in their directions, [count, wide], zero behind the last.
// `room` is for 2 * wide floats and wide bytes.
inline void latent_numbers(const Side& s, const float* steps, int64_t tokens, int64_t from, int64_t count,
                           int64_t wide, float* to, float* room) {
  if (s.gains == nullptr) {
    for (int64_t t = 0; t < count; ++t) {
      const uint16_t* row = reinterpret_cast<const uint16_t*>(s.rows + (from + t) * s.row_bytes);
      for (int64_t i = 0; i < wide; ++i) to[t * wide + i] = i < s.count ? half_to_float(row[i]) : 0.0f;
    }
    return;
  }
  float *factor = room, *middle = room + wide;
  uint8_t* codes = reinterpret_cast<uint8_t*>(middle + wide);
  for (int64_t i = 0; i < wide; ++i) {
    const bool is_used = i < s.count;
    factor[i] = is_used ? steps[s.bits[i]] * s.size[i] : 0.0f;
    middle[i] = is_used ? 0.5f * float((1 << s.bits[i]) - 1) : 0.0f;
    codes[i] = 0;
  }
  const uint8_t* end = s.rows + tokens * s.row_bytes;
  for (int64_t t = 0; t < count; ++t) {
    class_bytes(s.rows + (from + t) * s.row_bytes, end, s.bits, s.count, codes);
    const V gain = set(half_to_float(s.gains[from + t]));
    for (int64_t i = 0; i < wide; i += W)
      store(to + t * wide + i,
            mul(mul(sub(bytes(codes + i), load(middle + i)), load(factor + i)), gain));
  }
}

// The products of `rows` rows of u with ways, and the mean; rows of x are `width` apart.
inline void turned_back(const float* u, int64_t u_stride, int64_t rows, const float* ways,
                        const uint16_t* mean, int64_t count, int64_t width, float* x) {
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t d = 0; d < width; d += W) store(x + t * width + d, halves(mean + d));
  for (int64_t d = 0; d < width;) {
    const int vectors = int(smaller(kTileVectors, (width - d) / W));
    for (int64_t t = 0; t < rows; t += kTileRows) {
      const int64_t high = smaller(kTileRows, rows - t);
      tile_of(high, vectors)(u + t * u_stride, u_stride, ways + d, width, count, x + t * width + d, width,
                             true);
    }
    d += vectors * W;
  }
}

// Turns keys [rows, width] to where they stand. Angles of neighbours follow from each other; every
// few tokens they are worked out anew, so that nothing adds up.
inline void turn_keys(float* x, int64_t rows, int64_t width, int64_t size, int64_t position,
                      const float* frequencies, float* angles) {
  const int64_t half = size / 2;
  float *c = angles, *s = angles + half, *dc = s + half, *ds = dc + half;
  for (int64_t i = 0; i < half; ++i) {
    dc[i] = std::cos(frequencies[i]);
    ds[i] = std::sin(frequencies[i]);
  }
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      if (t % 32 == 0) {
        const float angle = float(position + t) * frequencies[i];
        c[i] = std::cos(angle);
        s[i] = std::sin(angle);
      } else {
        const float before = c[i];
        c[i] = before * dc[i] - s[i] * ds[i];
        s[i] = s[i] * dc[i] + before * ds[i];
      }
    }
    for (float* head = x + t * width; head < x + (t + 1) * width; head += size)
      for (int64_t i = 0; i < half; ++i) {
        const float low = head[i], high = head[i + half];
        head[i] = low * c[i] - high * s[i];
        head[i + half] = high * c[i] + low * s[i];
      }
  }
}

// G query heads of one KV head against a chunk of keys [count, width] and numbers of values.
template <int G>
INLINE void attend_chunk(const float* q, const float* keys, int64_t width, const float* values, int64_t wide,
                         int64_t count, int64_t size, float scale, float* part, float* sums) {
  alignas(64) float scores[G][kChunkTokens];
  float factors[G];
  score<G, false>(q, size, keys, 0, width, count, size, scale, scores);
  weights_of<G>(scores, count, size + 2, part, factors);
  weigh<G, false>(scores, values, 0, wide, count, wide, factors, sums, wide);
}

void attend_latent(const float* q, int64_t groups, int64_t kv_heads, const Latent& kv, int64_t from,
                   int64_t to, int64_t size, float scale, float* part, uint8_t* scratch) {
  const int64_t heads = groups * kv_heads, width = kv.width;
  const int64_t k_wide = whole(kv.k.count, kPad), v_wide = whole(kv.v.count, kPad), row = size + 2;
  float* k_numbers = reinterpret_cast<float*>(scratch);
  float* v_numbers = k_numbers + kChunkTokens * k_wide;
  float* keys = v_numbers + kChunkTokens * v_wide;
  float* ways = keys + kChunkTokens * width;
  float* sums = ways + kv.k.count * width;
  float* room = sums + heads * v_wide;
  for (int64_t i = 0; i < kv.k.count * width; i += W) store(ways + i, halves(kv.k.ways + i));
  std::memset(sums, 0, heads * v_wide * 4);
  for (int64_t h = 0; h < heads; ++h) clear<1>(part + h * row, row);
  for (int64_t begin = from; begin < to; begin += kChunkTokens) {
    const int64_t count = smaller(kChunkTokens, to - begin);
    latent_numbers(kv.k, kv.steps, kv.tokens, begin, count, k_wide, k_numbers, room);
    turned_back(k_numbers, k_wide, count, ways, kv.k.mean, kv.k.count, width, keys);
    turn_keys(keys, count, width, size, kv.position + begin, kv.frequencies, room);
    latent_numbers(kv.v, kv.steps, kv.tokens, begin, count, v_wide, v_numbers, room);
    for (int64_t head = 0; head < kv_heads; ++head)
      for (int64_t g = 0; g < groups;) {
        const int64_t left = smaller(groups - g, kHeads), h = head * groups + g;
        const float *one = q + h * size, *of = keys + head * size;
        float *p = part + h * row, *sum = sums + h * v_wide;
        if (left == 1) attend_chunk<1>(one, of, width, v_numbers, v_wide, count, size, scale, p, sum);
        else if (left == 2) attend_chunk<2>(one, of, width, v_numbers, v_wide, count, size, scale, p, sum);
        else if (left == 3) attend_chunk<3>(one, of, width, v_numbers, v_wide, count, size, scale, p, sum);
        else attend_chunk<4>(one, of, width, v_numbers, v_wide, count, size, scale, p, sum);
        g += left;
      }
  }
  // What the queries read is turned back once, not token by token.
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t at = h / groups * size;
    float* out = part + h * row;
    for (int64_t d = 0; d < size; ++d) out[d] = out[size + 1] * half_to_float(kv.v.mean[at + d]);
    for (int64_t i = 0; i < kv.v.count; ++i) {
      const V u = set(sums[h * v_wide + i]);
      const uint16_t* way = kv.v.ways + i * width + at;
      int64_t d = 0;
      for (; d + W <= size; d += W) store(out + d, fma(u, halves(way + d), load(out + d)));
      for (; d < size; ++d) out[d] += sums[h * v_wide + i] * half_to_float(way[d]);
    }
  }
}

float merge(const float* parts, int64_t count, int64_t stride, int64_t size, float* out) {
  float peak = -HUGE_VALF;
  for (int64_t c = 0; c < count; ++c) {
    const float other = parts[c * stride + size];
    peak = other > peak ? other : peak;
  }
  for (int64_t d = 0; d < size; ++d) out[d] = 0;
  float weights = 0;
  for (int64_t c = 0; c < count; ++c) {
    const float* part = parts + c * stride;
    const float factor = count == 1 ? 1.0f : exponential_one(part[size] - peak);
    weights += factor * part[size + 1];
    int64_t d = 0;
    for (; d + W <= size; d += W) store(out + d, fma(set(factor), load(part + d), load(out + d)));
    for (; d < size; ++d) out[d] += factor * part[d];
  }
  if (!(weights > 0)) return -HUGE_VALF;
  const float inverse = 1.0f / weights;
  int64_t d = 0;
  for (; d + W <= size; d += W) store(out + d, mul(load(out + d), set(inverse)));
  for (; d < size; ++d) out[d] *= inverse;
  return peak + std::log(weights);
}

inline int64_t padded_size(int64_t size) { return whole(size, W); }

// Floats of flash's scratch: keys, scores and values of a tile, then a head's output and statistics.
inline int64_t flash_tile(int64_t size) {
  return kFlashKeys * size + kFlashQueries * kFlashKeys + kFlashKeys * padded_size(size);
}
inline int64_t flash_head(int64_t size) { return kFlashQueries * (padded_size(size) + 2); }
int64_t flash_floats(int64_t size, int64_t groups) {
  return flash_tile(size) + groups * flash_head(size);
}

// Keys from..from+count as columns: [panel][channel][key], zero where there is none.
template <bool H>
void key_panels(const Stored& kv, int64_t head, int64_t from, int64_t count, int64_t size, float* to) {
  const int64_t even = size / W * W;
  for (int64_t s = 0; s < whole(count, kTileColumns); s += W) {
    float* column = to + s / kTileColumns * kTileColumns * size + s % kTileColumns;
    const int64_t many = larger(0, smaller(W, count - s));
    const int64_t at = head * kv.k_head + (from + s) * kv.k_token;
    for (int64_t d = 0; d < even; d += W) {
      V block[W];
      for (int64_t i = 0; i < W; ++i)
        block[i] = i < many ? numbers<H>(kv.k, at + i * kv.k_token + d) : zero();
      transpose(block);
      for (int64_t i = 0; i < W; ++i) store(column + (d + i) * kTileColumns, block[i]);
    }
    for (int64_t d = even; d < size; ++d)
      for (int64_t i = 0; i < W; ++i)
        column[d * kTileColumns + i] = i < many ? number(kv.k, H, at + i * kv.k_token + d) : 0.0f;
  }
}

template <bool H>
const float* value_rows(const Stored& kv, int64_t head, int64_t from, int64_t count, int64_t size,
                        float* to, int64_t* stride) {
  const int64_t wide = padded_size(size), at = head * kv.v_head + from * kv.v_token;
  if (!H && wide == size) {
    *stride = kv.v_token;
    return static_cast<const float*>(kv.v) + at;
  }
  for (int64_t s = 0; s < count; ++s) {
    int64_t d = 0;
    for (; d + W <= size; d += W) store(to + s * wide + d, numbers<H>(kv.v, at + s * kv.v_token + d));
    for (; d < wide; ++d)
      to[s * wide + d] = d < size ? number(kv.v, H, at + s * kv.v_token + d) : 0.0f;
  }
  *stride = wide;
  return to;
}

// Scores of one query against a tile become weights; returns what the sums so far are scaled by.
inline float soften(float* scores, int64_t low, int64_t high, int64_t count, float scale, float* peak,
                    float* weights) {
  const int64_t wide = whole(count, W);
  for (int64_t s = 0; s < low; ++s) scores[s] = -HUGE_VALF;
  for (int64_t s = high; s < wide; ++s) scores[s] = -HUGE_VALF;
  V highest = set(-HUGE_VALF);
  for (int64_t s = 0; s < wide; s += W) highest = most(highest, load(scores + s));
  const float before = *peak, found = top(highest) * scale;
  const float now = found > before ? found : before;
  V total = zero();
  for (int64_t s = 0; s < wide; s += W) {
    V p = exponential(fma(load(scores + s), set(scale), set(-now)));
    if (s + W > high || s < low) {  // the clamp of exp leaves a trace; hidden keys get none
      float lanes[W];
      store(lanes, p);
      for (int64_t i = 0; i < W; ++i)
        if (s + i < low || s + i >= high) lanes[i] = 0;
      p = load(lanes);
    }
    store(scores + s, p);
    total = add(total, p);
  }
  const float factor = before == now ? 1.0f : exponential_one(before - now);
  *weights = *weights * factor + sum(total);
  *peak = now;
  return factor;
}

template <bool H>
void flash_with(const Flash& a, int64_t kv_head, int64_t from, int64_t to, int64_t head, int64_t heads,
                float* arena) {
  const int64_t size = a.size, wide = padded_size(size), count = to - from;
  float* keys = arena;
  float* scores = keys + kFlashKeys * size;
  float* space = scores + kFlashQueries * kFlashKeys;
  float* outs = space + kFlashKeys * wide;
  float* peaks = outs + heads * kFlashQueries * wide;
  float* weights = peaks + heads * kFlashQueries;
  std::memset(outs, 0, heads * kFlashQueries * wide * 4);
  for (int64_t i = 0; i < heads * kFlashQueries; ++i) {
    peaks[i] = -HUGE_VALF;
    weights[i] = 0;
  }
  const int64_t last = smaller(a.stored, a.start + to);  // the last query sees no further
  int64_t begin = a.window > 0 ? larger(0, a.start + from - a.window + 1) : 0;
  begin = begin / kFlashKeys * kFlashKeys;
  for (int64_t s = begin; s < last; s += kFlashKeys) {
    const int64_t many = smaller(kFlashKeys, last - s);
    key_panels<H>(a.kv, kv_head, s, many, size, keys);
    int64_t v_stride;
    const float* values = value_rows<H>(a.kv, kv_head, s, many, size, space, &v_stride);
    for (int64_t g = 0; g < heads; ++g) {
      const float* q = a.q + (head + g) * a.q_head + from * a.q_token;
      float* out = outs + g * kFlashQueries * wide;
      for (int64_t i = 0; i < count; i += kTileRows) {
        const int64_t high = smaller(kTileRows, count - i);
        if (a.start + from + i + high <= s) continue;  // these queries stand before the tile
        const Tile score = tile_of(high, kTileVectors);
        float* at = scores + i * kFlashKeys;
        for (int64_t c = 0; c < many; c += kTileColumns)
          score(q + i * a.q_token, a.q_token, keys + c * size, kTileColumns, size, at + c, kFlashKeys,
                false);
        for (int64_t r = 0; r < high; ++r) {
          const int64_t place = a.start + from + i + r;
          const int64_t end = larger(0, smaller(many, place + 1 - s));
          const int64_t low = a.window > 0 ? smaller(end, larger(0, place - a.window + 1 - s)) : 0;
          float* row = at + r * kFlashKeys;
          float* sums_row = out + (i + r) * wide;
          if (low == end) {
            std::memset(row, 0, whole(many, W) * 4);
            continue;
          }
          const int64_t stat = g * kFlashQueries + i + r;
          const float factor = soften(row, low, end, many, a.scale, peaks + stat, weights + stat);
          if (factor != 1.0f)
            for (int64_t d = 0; d < wide; d += W) store(sums_row + d, mul(load(sums_row + d), set(factor)));
        }
        for (int64_t d = 0; d < wide;) {
          const int vectors = int(smaller(kTileVectors, (wide - d) / W));
          tile_of(high, vectors)(at, kFlashKeys, values + d, v_stride, many, out + i * wide + d, wide, true);
          d += vectors * W;
        }
      }
    }
  }
  for (int64_t g = 0; g < heads; ++g)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t stat = g * kFlashQueries + i;
      const float inverse = weights[stat] > 0 ? 1.0f / weights[stat] : 0.0f;
      float* from_row = outs + stat * wide;
      float* row = a.out + (head + g) * a.out_head + (from + i) * a.out_token;
      int64_t d = 0;
      for (; d + W <= size; d += W) store(row + d, mul(load(from_row + d), set(inverse)));
      for (; d < size; ++d) row[d] = from_row[d] * inverse;
      if (a.lse != nullptr)
        a.lse[(head + g) * a.queries + from + i] =
            weights[stat] > 0 ? peaks[stat] + std::log(weights[stat]) : -HUGE_VALF;
    }
}

// All query heads of one KV head, queries from..to (at most kFlashQueries).
void flash(const Flash& a, int64_t kv_head, int64_t from, int64_t to, float* arena) {
  const int64_t groups = a.heads / a.kv_heads;
  if (a.kv.half) flash_with<true>(a, kv_head, from, to, kv_head * groups, groups, arena);
  else flash_with<false>(a, kv_head, from, to, kv_head * groups, groups, arena);
}

// -- the rest ---------------------------------------------------------------------------------

// One row of block floating point: mantissas biased by 2^(bits - 1), a power of two a block.
void bfp(const uint8_t* packed, const uint8_t* exponents, const float* powers, int bits, int block,
         int64_t size, float* to, uint8_t* scratch) {
  const uint8_t* q = packed;
  if (bits != 8) {
    unpack(packed, whole(size * bits, 8) / 8, bits, size, scratch);
    q = scratch;
  }
  const float zero_point = float(1 << (bits - 1));
  for (int64_t b = 0; b < size / block; ++b) {
    const float power = powers[exponents[b]];
    const uint8_t* from = q + b * block;
    float* out = to + b * block;
    int64_t i = 0;
    for (; i + W <= block; i += W) store(out + i, mul(sub(bytes(from + i), set(zero_point)), set(power)));
    for (; i < block; ++i) out[i] = (float(from[i]) - zero_point) * power;
  }
}

uint64_t read_all(const uint8_t* from, int64_t count) {
  uint64_t total[8] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    uint64_t word[8];
    std::memcpy(word, from + i, 64);
    UNROLL for (int j = 0; j < 8; ++j) total[j] ^= word[j];
    prefetch(from + i + kAhead);
  }
  uint64_t all = 0;
  for (int j = 0; j < 8; ++j) all ^= total[j];
  for (; i < count; ++i) all ^= from[i];
  return all;
}

constexpr Kernels table() {
  Kernels k{};
  k.name = kName;
  k.lanes = W;
  k.lane_codes = 8;
  k.strip = kStrip;
  k.splits = splits;
  k.arrange = arrange;
  k.sum_groups = sum_groups;
  k.rounds = rounds;
  k.number_bytes = number_bytes;
  k.step_floats = step_floats;
  k.round_rows = round_rows;
  k.product = product;
  k.dequantise = dequantise;
  k.gemm_floats = gemm_floats;
  k.gemm = gemm;
  k.rms = rms;
  k.silu = silu;
  k.gelu = gelu;
  k.rope = rope;
  k.add = add_span;
  k.to_half = to_half;
  k.argmax = argmax;
  k.attend = attend;
  k.attend_codes = attend_codes;
  k.attend_levels = attend_levels;
  k.round_levels = round_levels;
  k.attend_latent = attend_latent;
  k.merge = merge;
  k.flash_floats = flash_floats;
  k.flash = flash;
  k.bfp = bfp;
  k.read = read_all;
  return k;
}

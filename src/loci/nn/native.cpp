// Native kernels: products with packed weights for a few rows, and the small steps around them.
//
// A decoded token reads every weight once; these kernels read it in its packed size and nothing
// else. Activations and sums are float32. A weight is codes (a little-endian bit stream a row),
// and per group a scale and either a minimum or an implied zero point; with the sum of x over each
// group known, minimum and zero cost one product a group:
//
//     sum_k (q_k * s + m) x_k = s * sum_k q_k x_k + m * sum_k x_k
//
// Every kernel exists in a plain form, one for AVX2 and one for AVX-512, chosen when it runs.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define LOCI_X86 1
#define AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")))
#else
#define LOCI_X86 0
#endif

namespace py = pybind11;

namespace {

enum Level { kPlain = 0, kAvx2 = 1, kAvx512 = 2 };
constexpr int kMaxRows = 16;    // rows of x one call may bring
constexpr int kStrip = 4;       // rows of x that share one decoding of a weight
constexpr int kSpins = 4000;    // turns a worker waits for work before it sleeps

// -- which kernels ----------------------------------------------------------------------------

int best_level() {
#if LOCI_X86
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx2 && avx512) return kAvx512;
  if (avx2) return kAvx2;
#endif
  return kPlain;
}

int g_level = best_level();

// -- threads ----------------------------------------------------------------------------------

// A few workers that stay. They spin for a moment after each job, because the next one usually
// follows within microseconds, and then sleep.
class Pool {
 public:
  using Job = void (*)(void*, int);

  explicit Pool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      ticket_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int threads() const { return threads_; }

  // Calls job(data, part) for every part in 0..threads-1, one of them here; returns when all did.
  void run(Job job, void* data) {
    if (threads_ == 1) {
      job(data, 0);
      return;
    }
    job_ = job;
    data_ = data;
    left_.store(threads_ - 1, std::memory_order_relaxed);
    ticket_.fetch_add(1, std::memory_order_release);
    if (asleep_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    job(data, 0);
    while (left_.load(std::memory_order_acquire) > 0) pause();
  }

 private:
  static void pause() {
#if LOCI_X86
    _mm_pause();
#else
    std::this_thread::yield();
#endif
  }

  void work(int part) {
    uint64_t seen = 0;
    for (;;) {
      int spins = 0;
      while (ticket_.load(std::memory_order_acquire) == seen) {
        if (++spins < kSpins) {
          pause();
          continue;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return ticket_.load(std::memory_order_acquire) != seen; });
        asleep_.fetch_sub(1, std::memory_order_relaxed);
      }
      seen = ticket_.load(std::memory_order_acquire);
      if (stop_) return;
      job_(data_, part);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  int threads_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int> left_{0};
  std::atomic<int> asleep_{0};
  bool stop_ = false;
  Job job_ = nullptr;
  void* data_ = nullptr;
};

int g_threads = std::max(1u, std::thread::hardware_concurrency());
Pool* g_pool = nullptr;
pid_t g_owner = 0;
std::mutex g_turn;  // one job at a time, whatever thread of Python it comes from

Pool& pool() {
  if (g_pool == nullptr || g_owner != getpid()) {
    // After a fork the workers of the parent do not exist here; its pool is left alone.
    g_pool = new Pool(g_threads);
    g_owner = getpid();
  }
  return *g_pool;
}

void set_threads(int threads) {
  std::lock_guard<std::mutex> turn(g_turn);
  g_threads = std::max(1, threads);
  if (g_pool != nullptr && g_owner == getpid()) delete g_pool;
  g_pool = nullptr;
}

template <class Body>
void parallel(Body& body) {
  std::lock_guard<std::mutex> turn(g_turn);
  Pool& p = pool();
  struct Call {
    Body* body;
    int threads;
  } call{&body, p.threads()};
  p.run([](void* data, int part) {
    auto* c = static_cast<Call*>(data);
    (*c->body)(part, c->threads);
  }, &call);
}

// -- packed weights ---------------------------------------------------------------------------

struct Packed {
  const uint8_t* codes;
  const void* scales;
  const void* mins;  // null for a symmetric grid
  int64_t out, inner, row_bytes;
  int bits, group, groups;
  bool half;  // scales and minima are float16
};

float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
  uint32_t bits;
  if (exponent == 0) {
    float value = std::ldexp(float(mantissa), -24);
    return sign ? -value : value;
  }
  bits = exponent == 31 ? sign | 0x7f800000u | (mantissa << 13)
                        : sign | ((exponent + 112) << 23) | (mantissa << 13);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

void floats_plain(const void* from, bool half, int64_t at, int count, float* to) {
  if (!half) {
    std::memcpy(to, static_cast<const float*>(from) + at, count * 4);
    return;
  }
  const uint16_t* h = static_cast<const uint16_t*>(from) + at;
  for (int i = 0; i < count; ++i) to[i] = half_to_float(h[i]);
}

#if LOCI_X86
AVX2 void floats_simd(const void* from, bool half, int64_t at, int count, float* to) {
  if (!half) {
    std::memcpy(to, static_cast<const float*>(from) + at, count * 4);
    return;
  }
  const uint16_t* h = static_cast<const uint16_t*>(from) + at;
  int i = 0;
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(h + i))));
  for (; i < count; ++i) to[i] = half_to_float(h[i]);
}
#endif

void floats(int level, const void* from, bool half, int64_t at, int count, float* to) {
#if LOCI_X86
  if (level != kPlain) return floats_simd(from, half, at, count, to);
#endif
  floats_plain(from, half, at, count, to);
}

// Codes of one row as bytes, in order.
void unpack_plain(const uint8_t* row, int64_t row_bytes, int bits, int64_t inner, uint8_t* to) {
  if (bits == 8) {
    std::memcpy(to, row, inner);
    return;
  }
  const uint32_t mask = (1u << bits) - 1;
  uint64_t held = 0;
  int have = 0;
  int64_t at = 0;
  for (int64_t i = 0; i < inner; ++i) {
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

#if LOCI_X86
AVX2 void unpack_simd(const uint8_t* row, int64_t row_bytes, int bits, int64_t inner, uint8_t* to) {
  if (bits == 8) {
    std::memcpy(to, row, inner);
    return;
  }
  // Eight codes are `bits` bytes: one deposit spreads them over eight bytes.
  const uint64_t spread = 0x0101010101010101ull * ((1u << bits) - 1);
  int64_t i = 0;
  for (; i + 8 <= inner && (i / 8) * bits + 8 <= row_bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, row + (i / 8) * bits, 8);
    uint64_t bytes = _pdep_u64(word, spread);
    std::memcpy(to + i, &bytes, 8);
  }
  if (i < inner) {
    int64_t done = (i / 8) * bits;
    unpack_plain(row + done, row_bytes - done, bits, inner - i, to + i);
  }
}
#endif

void unpack(int level, const uint8_t* row, int64_t row_bytes, int bits, int64_t inner,
            uint8_t* to) {
#if LOCI_X86
  if (level != kPlain) return unpack_simd(row, row_bytes, bits, inner, to);
#endif
  unpack_plain(row, row_bytes, bits, inner, to);
}

// -- products ---------------------------------------------------------------------------------

// What all rows of one product share: x, x with the order of 4-bit codes, sums of x per group.
struct Prepared {
  const float* x;        // [M, K]
  const float* split;    // [M, K] in the order of 4-bit codes (split_x), or null
  const float* sums;     // [M, G]
  int rows;
};

// y[m] for one weight row and up to kStrip rows of x, from codes given as bytes.
void dot_bytes_plain(const uint8_t* q, const Packed& w, const float* scales, const float* x,
                     int rows, float* y) {
  for (int m = 0; m < rows; ++m) {
    const float* xm = x + m * w.inner;
    float total = 0;
    for (int g = 0; g < w.groups; ++g) {
      float part = 0;
      for (int k = g * w.group; k < (g + 1) * w.group; ++k) part += float(q[k]) * xm[k];
      total += scales[g] * part;
    }
    y[m] = total;
  }
}

#if LOCI_X86
AVX2 inline float sum8(__m256 v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

AVX2 inline __m256 bytes8(const uint8_t* q) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)q)));
}

AVX2 void dot_bytes_avx2(const uint8_t* q, const Packed& w, const float* scales, const float* x,
                         int rows, float* y) {
  for (int m = 0; m < rows; ++m) {
    const float* xm = x + m * w.inner;
    __m256 total = _mm256_setzero_ps();
    float rest = 0;
    for (int g = 0; g < w.groups; ++g) {
      __m256 part = _mm256_setzero_ps();
      int k = g * w.group, end = k + w.group;
      for (; k + 8 <= end; k += 8) part = _mm256_fmadd_ps(bytes8(q + k), _mm256_loadu_ps(xm + k), part);
      float tail = 0;
      for (; k < end; ++k) tail += float(q[k]) * xm[k];
      total = _mm256_fmadd_ps(_mm256_set1_ps(scales[g]), part, total);
      rest += scales[g] * tail;
    }
    y[m] = sum8(total) + rest;
  }
}

AVX512 inline __m512 bytes16(const uint8_t* q) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)q)));
}

template <int R>
AVX512 void dot_bytes_avx512_rows(const uint8_t* q, const Packed& w, const float* scales,
                                  const float* x, float* y) {
  __m512 total[R];
  for (int m = 0; m < R; ++m) total[m] = _mm512_setzero_ps();
  for (int g = 0; g < w.groups; ++g) {
    __m512 part[R];
    for (int m = 0; m < R; ++m) part[m] = _mm512_setzero_ps();
    int64_t k = int64_t(g) * w.group, end = k + w.group;
    for (; k + 16 <= end; k += 16) {
      __m512 v = bytes16(q + k);
      for (int m = 0; m < R; ++m)
        part[m] = _mm512_fmadd_ps(v, _mm512_loadu_ps(x + m * w.inner + k), part[m]);
    }
    if (k < end) {
      __mmask16 mask = __mmask16((1u << (end - k)) - 1);
      __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, q + k)));
      for (int m = 0; m < R; ++m)
        part[m] = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(mask, x + m * w.inner + k), part[m]);
    }
    __m512 s = _mm512_set1_ps(scales[g]);
    for (int m = 0; m < R; ++m) total[m] = _mm512_fmadd_ps(s, part[m], total[m]);
  }
  for (int m = 0; m < R; ++m) y[m] = _mm512_reduce_add_ps(total[m]);
}

// 4-bit codes with groups of whole 32s, straight from the nibbles: sixteen bytes hold the even
// codes low and the odd codes high, and a permutation of a table turns a nibble into its float.
template <int R>
AVX512 void dot4_avx512_rows(const uint8_t* row, const Packed& w, const float* scales,
                             const float* split, float* y) {
  const __m512 table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512 total[R];
  for (int m = 0; m < R; ++m) total[m] = _mm512_setzero_ps();
  const int blocks = w.group / 32;
  int64_t b = 0;
  for (int g = 0; g < w.groups; ++g) {
    __m512 part[R];
    for (int m = 0; m < R; ++m) part[m] = _mm512_setzero_ps();
    for (int i = 0; i < blocks; ++i, ++b) {
      __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(row + 16 * b)));
      __m512 even = _mm512_permutexvar_ps(c, table);
      __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(c, 4), table);
      for (int m = 0; m < R; ++m) {
        const float* xm = split + m * w.inner + 32 * b;
        part[m] = _mm512_fmadd_ps(even, _mm512_loadu_ps(xm), part[m]);
        part[m] = _mm512_fmadd_ps(odd, _mm512_loadu_ps(xm + 16), part[m]);
      }
    }
    __m512 s = _mm512_set1_ps(scales[g]);
    for (int m = 0; m < R; ++m) total[m] = _mm512_fmadd_ps(s, part[m], total[m]);
  }
  for (int m = 0; m < R; ++m) y[m] = _mm512_reduce_add_ps(total[m]);
}

// The same with eight lanes: 32 bytes are 64 codes, eight to a 32-bit lane. Code j of a lane is
// masked where it stands, at 16^j times its value, and x was divided by 16^j beforehand: exact,
// and a shift saved. Only the topmost code is shifted, because there the sign would be.
template <int R>
AVX2 void dot4_avx2_rows(const uint8_t* row, const Packed& w, const float* scales,
                         const float* split, float* y) {
  __m256 total[R];
  for (int m = 0; m < R; ++m) total[m] = _mm256_setzero_ps();
  const int64_t blocks = w.inner / 64;
  for (int64_t b = 0; b < blocks; ++b) {
    const __m256i c = _mm256_loadu_si256((const __m256i*)(row + 32 * b));
    __m256 part[R];
#define LOCI_STEP(j, codes)                                                                \
  {                                                                                        \
    __m256 v = _mm256_cvtepi32_ps(codes);                                                  \
    for (int m = 0; m < R; ++m) {                                                          \
      __m256 x = _mm256_loadu_ps(split + m * w.inner + 64 * b + 8 * j);                    \
      part[m] = j == 0 ? _mm256_mul_ps(v, x) : _mm256_fmadd_ps(v, x, part[m]);             \
    }                                                                                      \
  }
    LOCI_STEP(0, _mm256_and_si256(c, _mm256_set1_epi32(0xF)))
    LOCI_STEP(1, _mm256_and_si256(c, _mm256_set1_epi32(0xF0)))
    LOCI_STEP(2, _mm256_and_si256(c, _mm256_set1_epi32(0xF00)))
    LOCI_STEP(3, _mm256_and_si256(c, _mm256_set1_epi32(0xF000)))
    LOCI_STEP(4, _mm256_and_si256(c, _mm256_set1_epi32(0xF0000)))
    LOCI_STEP(5, _mm256_and_si256(c, _mm256_set1_epi32(0xF00000)))
    LOCI_STEP(6, _mm256_and_si256(c, _mm256_set1_epi32(0xF000000)))
    LOCI_STEP(7, _mm256_srli_epi32(c, 28))
#undef LOCI_STEP
    __m256 s;
    if (w.group == 32) {
      s = _mm256_set_m128(_mm_set1_ps(scales[2 * b + 1]), _mm_set1_ps(scales[2 * b]));
    } else {
      s = _mm256_set1_ps(scales[64 * b / w.group]);
    }
    for (int m = 0; m < R; ++m) total[m] = _mm256_fmadd_ps(s, part[m], total[m]);
  }
  for (int m = 0; m < R; ++m) y[m] = sum8(total[m]);
}
#endif

// Whether a product reads x in the order of 4-bit codes.
bool splits(const Packed& w, int level) {
  if (level == kPlain || w.bits != 4) return false;
  if (level == kAvx512) return w.group % 32 == 0;
  return w.inner % 64 == 0 && (w.group == 32 || w.group % 64 == 0);
}

// x in the order in which a level's kernel meets the codes of 4 bits.
void split_x(int level, const float* x, int64_t count, float* to) {
  if (level == kAvx512) {
    for (int64_t b = 0; b < count / 32; ++b)
      for (int i = 0; i < 16; ++i) {
        to[32 * b + i] = x[32 * b + 2 * i];
        to[32 * b + 16 + i] = x[32 * b + 2 * i + 1];
      }
    return;
  }
  for (int64_t b = 0; b < count / 64; ++b) {
    float power = 1.0f;
    for (int j = 0; j < 8; ++j) {
      if (j == 7) power = 1.0f;
      for (int lane = 0; lane < 8; ++lane)
        to[64 * b + 8 * j + lane] = x[64 * b + 8 * lane + j] * power;
      power /= 16.0f;
    }
  }
}

// Rows first..last of one weight against all rows of x; y is [M, N] with its own row stride.
void product_rows(int level, const Packed& w, const Prepared& p, int64_t first, int64_t last,
                  float* y, int64_t y_stride, std::vector<float>& scratch,
                  std::vector<uint8_t>& bytes) {
  scratch.resize(2 * w.groups);
  float* scales = scratch.data();
  float* mins = scales + w.groups;
  const float zero = w.mins == nullptr ? float(1 << (w.bits - 1)) : 0.0f;
  const bool nibbles = splits(w, level);
  if (!nibbles && w.bits != 8) bytes.resize(w.inner + 16);
  for (int64_t n = first; n < last; ++n) {
    const uint8_t* row = w.codes + n * w.row_bytes;
    floats(level, w.scales, w.half, n * w.groups, w.groups, scales);
    if (w.mins != nullptr) {
      floats(level, w.mins, w.half, n * w.groups, w.groups, mins);
    } else {
      for (int g = 0; g < w.groups; ++g) mins[g] = -zero * scales[g];
    }
    const uint8_t* q = row;
    if (!nibbles && w.bits != 8) {
      unpack(level, row, w.row_bytes, w.bits, w.inner, bytes.data());
      q = bytes.data();
    }
    for (int m0 = 0; m0 < p.rows; m0 += kStrip) {
      int rows = std::min(kStrip, p.rows - m0);
      float part[kStrip];
      const float* x = p.x + m0 * w.inner;
#if LOCI_X86
      if (nibbles) {
        const float* s = p.split + m0 * w.inner;
        if (level == kAvx2 && rows == 1) dot4_avx2_rows<1>(row, w, scales, s, part);
        else if (level == kAvx2 && rows == 2) dot4_avx2_rows<2>(row, w, scales, s, part);
        else if (level == kAvx2 && rows == 3) dot4_avx2_rows<3>(row, w, scales, s, part);
        else if (level == kAvx2) dot4_avx2_rows<4>(row, w, scales, s, part);
        else if (rows == 1) dot4_avx512_rows<1>(row, w, scales, s, part);
        else if (rows == 2) dot4_avx512_rows<2>(row, w, scales, s, part);
        else if (rows == 3) dot4_avx512_rows<3>(row, w, scales, s, part);
        else dot4_avx512_rows<4>(row, w, scales, s, part);
      } else if (level == kAvx512) {
        if (rows == 1) dot_bytes_avx512_rows<1>(q, w, scales, x, part);
        else if (rows == 2) dot_bytes_avx512_rows<2>(q, w, scales, x, part);
        else if (rows == 3) dot_bytes_avx512_rows<3>(q, w, scales, x, part);
        else dot_bytes_avx512_rows<4>(q, w, scales, x, part);
      } else if (level == kAvx2) {
        dot_bytes_avx2(q, w, scales, x, rows, part);
      } else
#endif
      {
        dot_bytes_plain(q, w, scales, x, rows, part);
      }
      for (int m = 0; m < rows; ++m) {
        const float* sums = p.sums + (m0 + m) * w.groups;
        float shift = 0;
        for (int g = 0; g < w.groups; ++g) shift += mins[g] * sums[g];
        y[(m0 + m) * y_stride + n] = part[m] + shift;
      }
    }
  }
}

struct Product {
  const Packed* weight;
  float* out;
  int64_t stride;
};

void products(const std::vector<Product>& list, const float* x, int rows) {
  const int level = g_level;
  const int64_t inner = list[0].weight->inner;
  static thread_local std::vector<float> split, sums;
  static thread_local std::vector<int64_t> at;  // where the sums of each product begin
  bool any_split = false;
  int64_t total_sums = 0;
  at.clear();
  for (size_t i = 0; i < list.size(); ++i) {
    const Packed& w = *list[i].weight;
    any_split |= splits(w, level);
    int64_t same = -1;
    for (size_t j = 0; j < i; ++j)
      if (list[j].weight->group == w.group) same = at[j];
    at.push_back(same >= 0 ? same : total_sums);
    if (same < 0) total_sums += int64_t(rows) * w.groups;
  }
  sums.resize(total_sums);
  for (size_t i = 0; i < list.size(); ++i) {
    const Packed& w = *list[i].weight;
    for (int m = 0; m < rows; ++m)
      for (int g = 0; g < w.groups; ++g) {
        const float* from = x + m * inner + int64_t(g) * w.group;
        float s = 0;
        for (int k = 0; k < w.group; ++k) s += from[k];
        sums[at[i] + m * w.groups + g] = s;
      }
  }
  if (any_split) {
    split.resize(int64_t(rows) * inner);
    split_x(level, x, int64_t(rows) * inner, split.data());
  }
  int64_t work = 0;
  for (const Product& p : list) work += p.weight->out;
  const float* split_data = any_split ? split.data() : nullptr;
  const float* sums_data = sums.data();
  const int64_t* at_data = at.data();
  auto body = [&](int part, int threads) {
    static thread_local std::vector<float> scratch;
    static thread_local std::vector<uint8_t> bytes;
    int64_t from = work * part / threads, to = work * (part + 1) / threads, base = 0;
    for (size_t i = 0; i < list.size(); ++i) {
      const Packed& w = *list[i].weight;
      int64_t first = std::max<int64_t>(from - base, 0), last = std::min(to - base, w.out);
      if (first < last) {
        Prepared p{x, split_data, sums_data + at_data[i], rows};
        product_rows(level, w, p, first, last, list[i].out, list[i].stride, scratch, bytes);
      }
      base += w.out;
    }
  };
  parallel(body);
}

// -- dequantised rows -------------------------------------------------------------------------

void dequantise_row_plain(const uint8_t* q, const float* scales, const float* mins, int group,
                          int groups, float* to) {
  for (int g = 0; g < groups; ++g)
    for (int k = g * group; k < (g + 1) * group; ++k) to[k] = float(q[k]) * scales[g] + mins[g];
}

#if LOCI_X86
AVX2 void dequantise_row_avx2(const uint8_t* q, const float* scales, const float* mins, int group,
                              int groups, float* to) {
  for (int g = 0; g < groups; ++g) {
    int k = g * group, end = k + group;
    __m256 s = _mm256_set1_ps(scales[g]), m = _mm256_set1_ps(mins[g]);
    // A product and a sum, each rounded, as the reference does; a fused one would differ.
    for (; k + 8 <= end; k += 8)
      _mm256_storeu_ps(to + k, _mm256_add_ps(_mm256_mul_ps(bytes8(q + k), s), m));
    for (; k < end; ++k) {
      volatile float product = float(q[k]) * scales[g];
      to[k] = product + mins[g];
    }
  }
}
#endif

// `zero` is taken from the code before it is scaled, so that a symmetric grid is exact.
void dequantise_one(int level, const Packed& w, int64_t n, float* to, std::vector<float>& scratch,
                    std::vector<uint8_t>& bytes) {
  scratch.resize(2 * w.groups);
  float* scales = scratch.data();
  float* mins = scales + w.groups;
  floats(level, w.scales, w.half, n * w.groups, w.groups, scales);
  const uint8_t* row = w.codes + n * w.row_bytes;
  const uint8_t* q = row;
  if (w.bits != 8) {
    bytes.resize(w.inner + 16);
    unpack(level, row, w.row_bytes, w.bits, w.inner, bytes.data());
    q = bytes.data();
  }
  if (w.mins == nullptr) {
    const int zero = 1 << (w.bits - 1);
    for (int g = 0; g < w.groups; ++g)
      for (int64_t k = int64_t(g) * w.group; k < int64_t(g + 1) * w.group; ++k)
        to[k] = float(int(q[k]) - zero) * scales[g];
    return;
  }
  floats(level, w.mins, w.half, n * w.groups, w.groups, mins);
#if LOCI_X86
  if (level != kPlain) return dequantise_row_avx2(q, scales, mins, w.group, w.groups, to);
#endif
  dequantise_row_plain(q, scales, mins, w.group, w.groups, to);
}

void dequantise(const Packed& w, int64_t first, int64_t last, float* to) {
  const int level = g_level;
  auto body = [&](int part, int threads) {
    static thread_local std::vector<float> scratch;
    static thread_local std::vector<uint8_t> bytes;
    int64_t count = last - first, from = first + count * part / threads;
    int64_t end = first + count * (part + 1) / threads;
    for (int64_t n = from; n < end; ++n)
      dequantise_one(level, w, n, to + (n - first) * w.inner, scratch, bytes);
  };
  parallel(body);
}

void rows(const Packed& w, const int64_t* ids, int64_t count, float* to) {
  static thread_local std::vector<float> scratch;
  static thread_local std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < count; ++i)
    dequantise_one(g_level, w, ids[i], to + i * w.inner, scratch, bytes);
}

// -- the steps between products ---------------------------------------------------------------

#if LOCI_X86 && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3", "fast-math")))
#else
#define CLONES
#endif

CLONES void rms_row(const float* x, const float* weight, float eps, float offset, int64_t size,
                    float* out) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += x[i] * x[i];
  float scale = 1.0f / std::sqrt(sum / float(size) + eps);
  for (int64_t i = 0; i < size; ++i) out[i] = x[i] * scale * (weight[i] + offset);
}

// exp by the usual reduction to 2^n * e^r with |r| <= ln2 / 2 and a polynomial; relative error
// below 2e-7, and the compiler vectorises it.
inline float exp_one(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  float n = std::nearbyint(x * 1.44269504f);
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

CLONES void silu_span(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) gate[i] = gate[i] / (1.0f + exp_one(-gate[i])) * up[i];
}

CLONES void gelu_span(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float g = gate[i];
    float t = 0.7978845608f * (g + 0.044715f * g * g * g);
    float tanh = 1.0f - 2.0f / (1.0f + exp_one(2.0f * t));
    gate[i] = 0.5f * g * (1.0f + tanh) * up[i];
  }
}

// x [rows, heads, D] in place or into out, cos and sin [rows, D]; channel i pairs with i + D/2.
CLONES void rope_rows(const float* x, const float* cos, const float* sin, int64_t heads,
                      int64_t size, float* out) {
  int64_t half = size / 2;
  for (int64_t h = 0; h < heads; ++h) {
    const float* a = x + h * size;
    float* o = out + h * size;
    for (int64_t i = 0; i < half; ++i) {
      float low = a[i], high = a[i + half];
      o[i] = low * cos[i] - high * sin[i];
      o[i + half] = high * cos[i] + low * sin[i];
    }
  }
}

// -- attention of one token -------------------------------------------------------------------

template <class T>
inline float as_float(T value) { return value; }

CLONES float dot_span(const float* a, const float* b, int64_t count) {
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

CLONES void add_scaled(float* to, const float* from, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += scale * from[i];
}

CLONES void scale_span(float* to, float scale, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] *= scale;
}

struct Attend {
  const float* q;     // [H, D], rotated
  const void* k;      // token s of head h at k + h * head_stride + s * token_stride (elements)
  const void* v;
  int64_t k_head, k_token, v_head, v_token;
  int64_t tokens, heads, kv_heads, size;
  bool half;
  float scale;
  float* out;         // [H, D]
  float* lse;         // [H]
};

// One query head: a running softmax over tiles of tokens.
void attend_head(int level, const Attend& a, int64_t h, std::vector<float>& work) {
  constexpr int64_t kTile = 64;
  const int64_t kv = h / (a.heads / a.kv_heads);
  work.resize(kTile + 2 * a.size);
  float* scores = work.data();
  float* row = scores + kTile;
  const float* q = a.q + h * a.size;
  float* out = a.out + h * a.size;
  std::fill(out, out + a.size, 0.0f);
  float most = -std::numeric_limits<float>::infinity(), sum = 0;
  for (int64_t s0 = 0; s0 < a.tokens; s0 += kTile) {
    int64_t count = std::min(kTile, a.tokens - s0);
    float top = most;
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = kv * a.k_head + (s0 + i) * a.k_token;
      const float* key = static_cast<const float*>(a.k) + at;
      if (a.half) {
        floats(level, a.k, true, at, int(a.size), row);
        key = row;
      }
      scores[i] = a.scale * dot_span(q, key, a.size);
      top = std::max(top, scores[i]);
    }
    if (top > most) {
      float factor = std::isinf(most) ? 0.0f : std::exp(most - top);
      scale_span(out, factor, a.size);
      sum *= factor;
      most = top;
    }
    for (int64_t i = 0; i < count; ++i) {
      float weight = exp_one(scores[i] - most);
      sum += weight;
      int64_t at = kv * a.v_head + (s0 + i) * a.v_token;
      const float* value = static_cast<const float*>(a.v) + at;
      if (a.half) {
        floats(level, a.v, true, at, int(a.size), row);
        value = row;
      }
      add_scaled(out, value, weight, a.size);
    }
  }
  if (sum > 0) scale_span(out, 1.0f / sum, a.size);
  a.lse[h] = sum > 0 ? most + std::log(sum) : -std::numeric_limits<float>::infinity();
}

void attend(const Attend& a) {
  const int level = g_level;
  auto body = [&](int part, int threads) {
    static thread_local std::vector<float> work;
    for (int64_t h = a.heads * part / threads; h < a.heads * (part + 1) / threads; ++h)
      attend_head(level, a, h, work);
  };
  parallel(body);
}

// -- block floating point ---------------------------------------------------------------------

// Mantissas as a bit stream a row, biased by 2^(bits-1); one exponent byte a block of n, biased by
// 127: value = (mantissa - 2^(bits-1)) * 2^(exponent - 127 - (bits - 2)), zero where that step
// would be no normal float.
void bfp_rows(const uint8_t* packed, const uint8_t* exponents, int bits, int block, int64_t count,
              int64_t size, int64_t row_bytes, float* to) {
  const int level = g_level;
  float powers[256];
  for (int e = 0; e < 256; ++e) {
    int place = e - (bits - 2);
    powers[e] = place <= 0 ? 0.0f : std::ldexp(1.0f, place - 127);
  }
  const int blocks = int(size / block), zero = 1 << (bits - 1);
  auto body = [&](int part, int threads) {
    static thread_local std::vector<uint8_t> bytes;
    bytes.resize(size + 16);
    for (int64_t r = count * part / threads; r < count * (part + 1) / threads; ++r) {
      const uint8_t* q = packed + r * row_bytes;
      if (bits != 8) {
        unpack(level, q, row_bytes, bits, size, bytes.data());
        q = bytes.data();
      }
      for (int b = 0; b < blocks; ++b) {
        float power = powers[exponents[r * blocks + b]];
        float* out = to + r * size + b * block;
        const uint8_t* in = q + b * block;
        for (int i = 0; i < block; ++i) out[i] = float(int(in[i]) - zero) * power;
      }
    }
  };
  parallel(body);
}

// -- what Python sees -------------------------------------------------------------------------

template <class T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

class Weight {
 public:
  Weight(uintptr_t codes, uintptr_t scales, uintptr_t mins, int64_t out, int64_t inner, int bits,
         int group, bool half) {
    if (bits < 2 || bits > 8 || group < 1 || inner % group != 0)
      throw std::invalid_argument("a packed weight of this form cannot be read");
    packed_ = {at<const uint8_t>(codes), at<const void>(scales), at<const void>(mins), out, inner,
               (inner * bits + 7) / 8, bits, group, int(inner / group), half};
  }
  Packed packed_;
};

void gemv(uintptr_t x, int rows, const Weight& w, uintptr_t out, int64_t stride) {
  if (rows < 1 || rows > kMaxRows) throw std::invalid_argument("1 to 16 rows");
  py::gil_scoped_release release;
  products({{&w.packed_, at<float>(out), stride}}, at<const float>(x), rows);
}

void gemv_many(uintptr_t x, int rows, py::list weights, py::list outs, py::list strides) {
  if (rows < 1 || rows > kMaxRows) throw std::invalid_argument("1 to 16 rows");
  std::vector<Product> list;
  for (size_t i = 0; i < weights.size(); ++i)
    list.push_back({&weights[i].cast<const Weight&>().packed_, at<float>(outs[i].cast<uintptr_t>()),
                    strides[i].cast<int64_t>()});
  py::gil_scoped_release release;
  products(list, at<const float>(x), rows);
}

template <class Body>
void over_rows(int64_t count, int64_t least, Body&& each) {
  if (count * 1 <= least) {  // too little to share
    for (int64_t i = 0; i < count; ++i) each(i);
    return;
  }
  auto body = [&](int part, int threads) {
    for (int64_t i = count * part / threads; i < count * (part + 1) / threads; ++i) each(i);
  };
  parallel(body);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Kernels for packed weights; use them through loci.nn.native.";
  py::class_<Weight>(m, "Weight")
      .def(py::init<uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int, int, bool>());
  m.def("gemv", &gemv);
  m.def("gemv_many", &gemv_many);
  m.def("dequantise", [](const Weight& w, int64_t first, int64_t last, uintptr_t to) {
    py::gil_scoped_release release;
    dequantise(w.packed_, first, last, at<float>(to));
  });
  m.def("rows", [](const Weight& w, uintptr_t ids, int64_t count, uintptr_t to) {
    py::gil_scoped_release release;
    rows(w.packed_, at<const int64_t>(ids), count, at<float>(to));
  });
  m.def("rmsnorm", [](uintptr_t x, uintptr_t weight, float eps, float offset, int64_t count,
                      int64_t size, uintptr_t out) {
    py::gil_scoped_release release;
    over_rows(count, 16, [&](int64_t i) {
      rms_row(at<const float>(x) + i * size, at<const float>(weight), eps, offset, size,
              at<float>(out) + i * size);
    });
  });
  m.def("silu_mul", [](uintptr_t gate, uintptr_t up, int64_t count, int64_t size) {
    py::gil_scoped_release release;
    over_rows(count, 16, [&](int64_t i) {
      silu_span(at<float>(gate) + i * size, at<const float>(up) + i * size, size);
    });
  });
  m.def("gelu_tanh_mul", [](uintptr_t gate, uintptr_t up, int64_t count, int64_t size) {
    py::gil_scoped_release release;
    over_rows(count, 16, [&](int64_t i) {
      gelu_span(at<float>(gate) + i * size, at<const float>(up) + i * size, size);
    });
  });
  m.def("rope", [](uintptr_t x, uintptr_t cos, uintptr_t sin, int64_t count, int64_t heads,
                   int64_t size, uintptr_t out) {
    py::gil_scoped_release release;
    over_rows(count, 64, [&](int64_t i) {
      rope_rows(at<const float>(x) + i * heads * size, at<const float>(cos) + i * size,
                at<const float>(sin) + i * size, heads, size, at<float>(out) + i * heads * size);
    });
  });
  m.def("attend_decode", [](uintptr_t q, uintptr_t k, uintptr_t v, int64_t k_head, int64_t k_token,
                            int64_t v_head, int64_t v_token, int64_t tokens, int64_t heads,
                            int64_t kv_heads, int64_t size, bool half, float scale, uintptr_t out,
                            uintptr_t lse) {
    py::gil_scoped_release release;
    attend({at<const float>(q), at<const void>(k), at<const void>(v), k_head, k_token, v_head,
            v_token, tokens, heads, kv_heads, size, half, scale, at<float>(out), at<float>(lse)});
  });
  m.def("bfp_dequant", [](uintptr_t packed, uintptr_t exponents, int bits, int block,
                          int64_t count, int64_t size, int64_t row_bytes, uintptr_t to) {
    py::gil_scoped_release release;
    bfp_rows(at<const uint8_t>(packed), at<const uint8_t>(exponents), bits, block, count,
             size, row_bytes, at<float>(to));
  });
  m.def("set_threads", &set_threads);
  m.def("threads", [] { return g_threads; });
  m.def("level", [] { return g_level; });
  m.def("best_level", &best_level);
  m.def("set_level", [](int level) {
    if (level < kPlain || level > best_level())
      throw std::invalid_argument("this machine does not have those instructions");
    g_level = level;
  });
}

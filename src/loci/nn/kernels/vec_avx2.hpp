// Eight lanes of float32 with AVX2, FMA and F16C.

#pragma once

using V = __m256;
using I = __m256i;
constexpr int W = 8;
constexpr int kTileRows = 6, kTileVectors = 2;

inline V as_numbers(I v) { return _mm256_castsi256_ps(v); }
inline I as_words(V v) { return _mm256_castps_si256(v); }
inline V zero() { return _mm256_setzero_ps(); }
inline V set(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V least(V a, V b) { return _mm256_min_ps(a, b); }
inline V most(V a, V b) { return _mm256_max_ps(a, b); }
inline V nearest(V a) { return _mm256_round_ps(a, 8); }
inline V power_of_two(V n) {
  I bits = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 23));
}
inline V keep(V v, int64_t count) {
  I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  I kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), lane);
  return _mm256_and_ps(v, _mm256_castsi256_ps(kept));
}

inline V halves(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store_halves(uint16_t* p, V v) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline V brains(const uint16_t* p) {
  I wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline V bytes(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
// Sixteen numbers, and those of them that the lowest four bits of words name.
struct Sixteen {
  V low, high;
};
inline Sixteen sixteen(const float* p) { return {load(p), load(p + 8)}; }
inline I wide(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
template <int Shift>
inline V named(const Sixteen& numbers, I words) {
  const I at = _mm256_srli_epi32(words, Shift);
  const V upper = as_numbers(_mm256_slli_epi32(at, 28));  // bit 3 where the sign is
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(numbers.low, at),
                          _mm256_permutevar8x32_ps(numbers.high, at), upper);
}
// sum + step where a is above the edge.
inline V add_above(V sum, V a, V edge, V step) {
  return _mm256_add_ps(sum, _mm256_and_ps(_mm256_cmp_ps(a, edge, _CMP_GT_OQ), step));
}

inline I words(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline I shorts(const uint8_t* p) {
  return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline I all(int32_t x) { return _mm256_set1_epi32(x); }
inline V masked(I c, I mask) { return _mm256_cvtepi32_ps(_mm256_and_si256(c, mask)); }
template <int Bits>
inline V topmost(I c) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(c, 32 - Bits)); }

// What products of whole numbers are made of: each lane of `dots` adds four codes times numbers.
inline I none() { return _mm256_setzero_si256(); }
inline V as_floats(I v) { return _mm256_cvtepi32_ps(v); }
inline I low_halves(I c) { return _mm256_and_si256(c, _mm256_set1_epi8(15)); }
inline I high_halves(I c) {
  return _mm256_and_si256(_mm256_srli_epi32(c, 4), _mm256_set1_epi8(15));
}
inline I dots(I sum, I codes, const int8_t* x) {
  const I numbers = _mm256_loadu_si256((const __m256i*)x);
  I even = _mm256_madd_epi16(_mm256_and_si256(codes, _mm256_set1_epi16(255)),
                             _mm256_srai_epi16(_mm256_slli_epi16(numbers, 8), 8));
  I odd = _mm256_madd_epi16(_mm256_srli_epi16(codes, 8), _mm256_srai_epi16(numbers, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline V pick(V table, const int32_t* index) {
  return _mm256_permutevar8x32_ps(table, _mm256_loadu_si256((const __m256i*)index));
}
// In assembly, because a function that only prefetches has no effect that the compiler must keep.
inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*(const char*)p)); }

inline float sum(V v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
inline float top(V v) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)));
}

// Lane i of the result is the sum of v[i].
inline V sums(const V* v) {
  V a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  V b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return add(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline void transpose(V* r) {
  V t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
    }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x20);
    r[j + 4] = _mm256_permute2f128_ps(u[j], u[j + 4], 0x31);
  }
}

// One vector of words' worth of x in the order of its codes, vectors `step` apart; see arrange().
inline void spread(const float* x, float* to, int64_t step) {
  V r[8];
  for (int lane = 0; lane < 8; ++lane) r[lane] = load(x + 8 * lane);
  transpose(r);
  float power = 1.0f;
  for (int j = 0; j < 7; ++j, power /= 16.0f) store(to + step * j, mul(r[j], set(power)));
  store(to + step * 7, r[7]);
}

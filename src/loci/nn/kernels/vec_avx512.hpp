// Sixteen lanes of float32 with AVX-512.

#pragma once

using V = __m512;
using I = __m512i;
constexpr int W = 16;
constexpr int kTileRows = 6, kTileVectors = 4;

inline V as_numbers(I v) { return _mm512_castsi512_ps(v); }
inline I as_words(V v) { return _mm512_castps_si512(v); }
inline V zero() { return _mm512_setzero_ps(); }
inline V set(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V least(V a, V b) { return _mm512_min_ps(a, b); }
inline V most(V a, V b) { return _mm512_max_ps(a, b); }
inline V nearest(V a) { return _mm512_roundscale_ps(a, 8); }
inline V power_of_two(V n) {
  I bits = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23));
}
inline V keep(V v, int64_t count) { return _mm512_maskz_mov_ps(__mmask16((1u << count) - 1), v); }

inline V halves(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void store_halves(uint16_t* p, V v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline V brains(const uint16_t* p) {
  I wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline V bytes(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
// Sixteen numbers, and those of them that the lowest four bits of words name.
struct Sixteen {
  V at;
};
inline Sixteen sixteen(const float* p) { return {load(p)}; }
inline I wide(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
template <int Shift>
inline V named(const Sixteen& numbers, I words) {
  return _mm512_permutexvar_ps(_mm512_srli_epi32(words, Shift), numbers.at);
}
// sum + step where a is above the edge.
inline V add_above(V sum, V a, V edge, V step) {
  return _mm512_mask_add_ps(sum, _mm512_cmp_ps_mask(a, edge, _CMP_GT_OQ), sum, step);
}

// A value that stays in its register: otherwise it may be put on the stack and read from there,
// which costs more than it saves.
inline I kept(I v) {
  asm("" : "+v"(v));
  return v;
}
inline I words(const uint8_t* p) { return kept(_mm512_loadu_si512(p)); }
inline I shorts(const uint8_t* p) {
  return kept(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)));
}
inline I all(int32_t x) { return kept(_mm512_set1_epi32(x)); }
inline V masked(I c, I mask) { return _mm512_cvtepi32_ps(_mm512_and_si512(c, mask)); }
template <int Bits>
inline V topmost(I c) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(c, 32 - Bits)); }

// What products of whole numbers are made of: each lane of `dots` adds four codes times numbers.
inline I none() { return _mm512_setzero_si512(); }
inline V as_floats(I v) { return _mm512_cvtepi32_ps(v); }
inline I low_halves(I c) { return _mm512_and_si512(c, _mm512_set1_epi8(15)); }
inline I high_halves(I c) {
  return _mm512_and_si512(_mm512_srli_epi32(c, 4), _mm512_set1_epi8(15));
}
inline I dots(I sum, I codes, const int8_t* x) {
  const I numbers = _mm512_loadu_si512(x);
#if LOCI_VNNI
  return _mm512_dpbusd_epi32(sum, codes, numbers);
#else
  I even = _mm512_madd_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(255)),
                             _mm512_srai_epi16(_mm512_slli_epi16(numbers, 8), 8));
  I odd = _mm512_madd_epi16(_mm512_srli_epi16(codes, 8), _mm512_srai_epi16(numbers, 8));
  return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
#endif
}
inline V pick(V table, const int32_t* index) {
  return _mm512_permutexvar_ps(_mm512_loadu_si512(index), table);
}
// In assembly, because a function that only prefetches has no effect that the compiler must keep.
inline void prefetch(const void* p) { asm volatile("prefetcht0 %0" : : "m"(*(const char*)p)); }

inline float sum(V v) { return _mm512_reduce_add_ps(v); }
inline float top(V v) { return _mm512_reduce_max_ps(v); }

// Lane i of the result is the sum of v[i].
inline V sums(const V* v) {
  V a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    __m512d low = _mm512_castps_pd(a[2 * i]), high = _mm512_castps_pd(a[2 * i + 1]);
    b[i] = add(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
               _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  }
  for (int i = 0; i < 2; ++i)
    c[i] = add(_mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88),
               _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xDD));
  return add(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xDD));
}

inline void transpose(V* r) {
  V t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      __m512d a = _mm512_castps_pd(t[i + j]), b = _mm512_castps_pd(t[i + j + 2]);
      r[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      r[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_f32x4(r[j], r[j + 4], 0xDD);
    t[j + 8] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0x88);
    t[j + 12] = _mm512_shuffle_f32x4(r[j + 8], r[j + 12], 0xDD);
  }
  for (int j = 0; j < 4; ++j) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    r[j + 4] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0x88);
    r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xDD);
    r[j + 12] = _mm512_shuffle_f32x4(t[j + 4], t[j + 12], 0xDD);
  }
}

// Sixty-four codes at once: a permutation brings the `bits` bytes of every eight codes together,
// and a shift of its own takes every code out of its word.
__attribute__((target("avx512vbmi"))) int64_t unpack_many(const uint8_t* row, int64_t row_bytes,
                                                          int bits, int64_t count, uint8_t* to) {
  alignas(64) uint8_t places[64], shifts[64];
  for (int i = 0; i < 64; ++i) {
    places[i] = uint8_t(i / 8 * bits + (i % 8 < bits ? i % 8 : bits - 1));
    shifts[i] = uint8_t(i % 8 * bits);
  }
  const I place = _mm512_load_si512(places), shift = _mm512_load_si512(shifts);
  const I mask = _mm512_set1_epi8(char((1 << bits) - 1));
  int64_t i = 0;
  for (; i + 64 <= count && (i / 8) * bits + 64 <= row_bytes; i += 64) {
    I word = _mm512_permutexvar_epi8(place, _mm512_loadu_si512(row + i / 8 * bits));
    _mm512_storeu_si512(to + i, _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, word), mask));
  }
  for (; i + 64 <= count; i += 64) {  // the last ones of a row: no byte beyond it is touched
    __mmask64 there = _cvtu64_mask64(~0ull >> (64 - 8 * bits));
    I word = _mm512_permutexvar_epi8(place, _mm512_maskz_loadu_epi8(there, row + i / 8 * bits));
    _mm512_storeu_si512(to + i, _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, word), mask));
  }
  return i;
}

inline void transpose_eight(__m256* r) {
  __m256 t[8], u[8];
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
  for (int half = 0; half < 2; ++half) {
    __m256 r[8];
    for (int lane = 0; lane < 8; ++lane) r[lane] = _mm256_loadu_ps(x + 64 * half + 8 * lane);
    transpose_eight(r);
    float power = 1.0f;
    for (int j = 0; j < 7; ++j, power /= 16.0f)
      _mm256_storeu_ps(to + step * j + 8 * half, _mm256_mul_ps(r[j], _mm256_set1_ps(power)));
    _mm256_storeu_ps(to + step * 7 + 8 * half, r[7]);
  }
}

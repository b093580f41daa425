// Four lanes of float32 with NEON on 64-bit Arm.

#pragma once

using V = float32x4_t;
using I = uint32x4_t;
constexpr int W = 4;
constexpr int kTileRows = 6, kTileVectors = 4;

inline V as_numbers(I v) { return vreinterpretq_f32_u32(v); }
inline I as_words(V v) { return vreinterpretq_u32_f32(v); }
inline V zero() { return vdupq_n_f32(0.0f); }
inline V set(float x) { return vdupq_n_f32(x); }
inline V load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, V v) { vst1q_f32(p, v); }
inline V add(V a, V b) { return vaddq_f32(a, b); }
inline V sub(V a, V b) { return vsubq_f32(a, b); }
inline V mul(V a, V b) { return vmulq_f32(a, b); }
inline V div(V a, V b) { return vdivq_f32(a, b); }
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V least(V a, V b) { return vminq_f32(a, b); }
inline V most(V a, V b) { return vmaxq_f32(a, b); }
inline V nearest(V a) { return vrndnq_f32(a); }
inline V power_of_two(V n) {
  int32x4_t bits = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
  return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
}
inline V keep(V v, int64_t count) {
  const uint32_t lanes[4] = {0, 1, 2, 3};
  I kept = vcgtq_u32(vdupq_n_u32(uint32_t(count)), vld1q_u32(lanes));
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), kept));
}

inline V halves(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline void store_halves(uint16_t* p, V v) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
inline V brains(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
inline V bytes(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, 4);
  uint16x8_t wide = vmovl_u8(vcreate_u8(four));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}
// Sixteen numbers, and those of them that the lowest four bits of words name.
struct Sixteen {
  const float* at;
};
inline Sixteen sixteen(const float* p) { return {p}; }
inline I wide(const uint8_t* p) {
  const uint32_t found[4] = {p[0], p[1], p[2], p[3]};
  return vld1q_u32(found);
}
template <int Shift>
inline V named(const Sixteen& numbers, I words) {
  uint32_t at[4];
  vst1q_u32(at, words);
  float found[4];
  for (int i = 0; i < 4; ++i) found[i] = numbers.at[at[i] >> Shift & 15];
  return load(found);
}
// sum + step where a is above the edge.
inline V add_above(V sum, V a, V edge, V step) {
  return vaddq_f32(sum, vreinterpretq_f32_u32(vandq_u32(vcgtq_f32(a, edge), vreinterpretq_u32_f32(step))));
}

inline I words(const uint8_t* p) { return vreinterpretq_u32_u8(vld1q_u8(p)); }
inline I shorts(const uint8_t* p) { return vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))); }
inline I all(int32_t x) { return vdupq_n_u32(uint32_t(x)); }
inline V masked(I c, I mask) { return vcvtq_f32_u32(vandq_u32(c, mask)); }
template <int Bits>
inline V topmost(I c) { return vcvtq_f32_u32(vshrq_n_u32(c, 32 - Bits)); }

// What products of whole numbers are made of: each lane of `dots` adds four codes times numbers.
inline I none() { return vdupq_n_u32(0); }
inline V as_floats(I v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
inline I low_halves(I c) { return vandq_u32(c, vdupq_n_u32(0x0F0F0F0Fu)); }
inline I high_halves(I c) { return vandq_u32(vshrq_n_u32(c, 4), vdupq_n_u32(0x0F0F0F0Fu)); }
inline I dots(I sum, I codes, const int8_t* x) {
  const uint8x16_t bytes = vreinterpretq_u8_u32(codes);
  const int8x16_t numbers = vld1q_s8(x);
  const int16x8_t c0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
  const int16x8_t c1 = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
  const int16x8_t x0 = vmovl_s8(vget_low_s8(numbers)), x1 = vmovl_s8(vget_high_s8(numbers));
  const int32x4_t a = vpaddq_s32(vmull_s16(vget_low_s16(c0), vget_low_s16(x0)),
                                 vmull_s16(vget_high_s16(c0), vget_high_s16(x0)));
  const int32x4_t b = vpaddq_s32(vmull_s16(vget_low_s16(c1), vget_low_s16(x1)),
                                 vmull_s16(vget_high_s16(c1), vget_high_s16(x1)));
  return vaddq_u32(sum, vreinterpretq_u32_s32(vpaddq_s32(a, b)));
}
inline V pick(V table, const int32_t* index) {
  float from[4], to[4];
  vst1q_f32(from, table);
  for (int i = 0; i < 4; ++i) to[i] = from[index[i]];
  return vld1q_f32(to);
}
// In assembly, because a function that only prefetches has no effect that the compiler must keep.
inline void prefetch(const void* p) { asm volatile("prfm pldl1keep, [%0]" : : "r"(p)); }

inline float sum(V v) { return vaddvq_f32(v); }
inline float top(V v) { return vmaxvq_f32(v); }

// Lane i of the result is the sum of v[i].
inline V sums(const V* v) { return vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])); }

inline void transpose(V* r) {
  float32x4x2_t a = vtrnq_f32(r[0], r[1]), b = vtrnq_f32(r[2], r[3]);
  r[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  r[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  r[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  r[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}

// One vector of words' worth of x in the order of its codes, vectors `step` apart; see arrange().
inline void spread(const float* x, float* to, int64_t step) {
  for (int lane = 0; lane < W; ++lane) {
    float power = 1.0f;
    for (int j = 0; j < 7; ++j, power /= 16.0f) to[step * j + lane] = x[8 * lane + j] * power;
    to[step * 7 + lane] = x[8 * lane + 7];
  }
}

// Four lanes of float32 in plain C++, for any machine.

#pragma once

struct V {
  float at[4];
};
struct I {
  uint32_t at[4];
};
constexpr int W = 4;
constexpr int kTileRows = 4, kTileVectors = 2;

template <class F>
inline V lanes(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline V as_numbers(I v) {
  V to;
  std::memcpy(&to, &v, 16);
  return to;
}
inline I as_words(V v) {
  I to;
  std::memcpy(&to, &v, 16);
  return to;
}
inline V zero() { return {{0, 0, 0, 0}}; }
inline V set(float x) { return {{x, x, x, x}}; }
inline V load(const float* p) {
  V v;
  std::memcpy(v.at, p, 16);
  return v;
}
inline void store(float* p, V v) { std::memcpy(p, v.at, 16); }
inline V add(V a, V b) { return lanes([&](int i) { return a.at[i] + b.at[i]; }); }
inline V sub(V a, V b) { return lanes([&](int i) { return a.at[i] - b.at[i]; }); }
inline V mul(V a, V b) { return lanes([&](int i) { return a.at[i] * b.at[i]; }); }
inline V div(V a, V b) { return lanes([&](int i) { return a.at[i] / b.at[i]; }); }
inline V fma(V a, V b, V c) { return lanes([&](int i) { return a.at[i] * b.at[i] + c.at[i]; }); }
inline V least(V a, V b) { return lanes([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; }); }
inline V most(V a, V b) { return lanes([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; }); }
inline V nearest(V a) { return lanes([&](int i) { return std::nearbyint(a.at[i]); }); }
inline V power_of_two(V n) {
  return lanes([&](int i) {
    uint32_t bits = uint32_t(int32_t(n.at[i]) + 127) << 23;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  });
}
inline V keep(V v, int64_t count) { return lanes([&](int i) { return i < count ? v.at[i] : 0.0f; }); }

inline V halves(const uint16_t* p) { return lanes([&](int i) { return half_to_float(p[i]); }); }
inline void store_halves(uint16_t* p, V v) {
  for (int i = 0; i < 4; ++i) p[i] = float_to_half(v.at[i]);
}
inline V brains(const uint16_t* p) { return lanes([&](int i) { return brain_to_float(p[i]); }); }
inline V bytes(const uint8_t* p) { return lanes([&](int i) { return float(p[i]); }); }
// Sixteen numbers, and those of them that the lowest four bits of words name.
struct Sixteen {
  const float* at;
};
inline Sixteen sixteen(const float* p) { return {p}; }
inline I wide(const uint8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
template <int Shift>
inline V named(const Sixteen& numbers, I words) {
  return lanes([&](int i) { return numbers.at[words.at[i] >> Shift & 15]; });
}
// sum + step where a is above the edge.
inline V add_above(V sum, V a, V edge, V step) {
  return lanes([&](int i) { return a.at[i] > edge.at[i] ? sum.at[i] + step.at[i] : sum.at[i]; });
}

inline I words(const uint8_t* p) {
  I c;
  std::memcpy(c.at, p, 16);
  return c;
}
inline I shorts(const uint8_t* p) {
  uint16_t s[4];
  std::memcpy(s, p, 8);
  return {{s[0], s[1], s[2], s[3]}};
}
inline I all(int32_t x) { return {{uint32_t(x), uint32_t(x), uint32_t(x), uint32_t(x)}}; }
inline V masked(I c, I mask) {
  return lanes([&](int i) { return float(int32_t(c.at[i] & mask.at[i])); });
}
template <int Bits>
inline V topmost(I c) { return lanes([&](int i) { return float(c.at[i] >> (32 - Bits)); }); }

// What products of whole numbers are made of: each lane of `dots` adds four codes times numbers.
inline I none() { return {{0, 0, 0, 0}}; }
inline V as_floats(I v) { return lanes([&](int i) { return float(int32_t(v.at[i])); }); }
inline I low_halves(I c) {
  for (int i = 0; i < 4; ++i) c.at[i] &= 0x0F0F0F0Fu;
  return c;
}
inline I high_halves(I c) {
  for (int i = 0; i < 4; ++i) c.at[i] = c.at[i] >> 4 & 0x0F0F0F0Fu;
  return c;
}
inline I dots(I sum, I codes, const int8_t* x) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      sum.at[i] += uint32_t(int32_t(codes.at[i] >> (8 * j) & 255u) * x[4 * i + j]);
  return sum;
}
inline V pick(V table, const int32_t* index) { return lanes([&](int i) { return table.at[index[i]]; }); }
inline void prefetch(const void*) {}

inline float sum(V v) { return (v.at[0] + v.at[1]) + (v.at[2] + v.at[3]); }
inline float top(V v) {
  V other = {{v.at[2], v.at[3], v.at[2], v.at[3]}};
  v = most(v, other);
  return v.at[0] > v.at[1] ? v.at[0] : v.at[1];
}
inline V sums(const V* v) { return lanes([&](int i) { return sum(v[i]); }); }
inline void transpose(V* r) {
  V t[4] = {r[0], r[1], r[2], r[3]};
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) r[i].at[j] = t[j].at[i];
}

// One vector of words' worth of x in the order of its codes, vectors `step` apart; see arrange().
inline void spread(const float* x, float* to, int64_t step) {
  for (int lane = 0; lane < W; ++lane) {
    float power = 1.0f;
    for (int j = 0; j < 7; ++j, power /= 16.0f) to[step * j + lane] = x[8 * lane + j] * power;
    to[step * 7 + lane] = x[8 * lane + 7];
  }
}

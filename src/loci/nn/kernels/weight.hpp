// Weights and rows of x as the kernels want them, and the products over all threads.

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "crew.hpp"
#include "kernels.hpp"

namespace loci {

int level();             // in use
int best_level();        // of this machine
bool has_level(int level);
void set_level(int level);
const Kernels& kernels();  // of the level in use

Packed packed(Kind kind, const void* codes, const void* scales, const void* mins, int64_t out,
              int64_t inner, int bits, int group, bool half);

int64_t scratch_bytes(const Packed& w);

// Memory of one thread at the edge of a cache line, kept for the next call.
class Scratch {
 public:
  void* at_least(int64_t bytes);

 private:
  std::vector<uint8_t> held_;
};

uint8_t* scratch(int64_t bytes);  // for what kernels unpack
float* floats(int64_t count);     // for what products prepare

// Floats that `prepare` fills for products of these weights with `rows` rows of x.
int64_t prepared_floats(const std::vector<const Packed*>& weights, int rows, bool rounded);

// Fills `found` with what each weight reads of x [rows, x_stride]; `to` keeps it. Rounded, x is put
// into whole numbers for the weights that can read them.
void prepare(const std::vector<const Packed*>& weights, const float* x, int64_t x_stride, int rows,
             bool rounded, float* to, std::vector<Rows>& found);

struct Product {
  const Packed* weight;
  float* out;
  int64_t stride;
  bool add;
};

// Every output of all weights together.
void products(std::span<const Product> list, const std::vector<Rows>& rows);

// Scratch, cut into equal parts for the workers.
struct Arena {
  float* floats;
  int64_t count;

  float* of(int worker, int workers) const { return floats + count / workers * worker; }
};

// How many workers an arena has room for when each needs `least` floats; at least one.
int workers_of(const Arena& arena, int64_t least);

// The same for any number of rows of x, by dequantised panels in the arena.
void gemm(std::span<const Product> list, const float* x, int64_t x_stride, int64_t rows,
          const Arena& arena);

// Outputs from..to of one product; `worker` of `workers` that share the arena.
void product_piece(const Product& p, const Rows& rows, int64_t from, int64_t to);
void gemm_piece(const Product& p, const float* x, int64_t x_stride, int64_t rows, int64_t from,
                int64_t to, float* arena, int64_t arena_floats);

// Outputs of a piece of work that is worth sharing and still small enough to share evenly.
int64_t product_step(const Packed& w, int64_t outputs);
int64_t gemm_step(int64_t outputs);

}  // namespace loci

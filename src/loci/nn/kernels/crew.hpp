// A few threads that share pieces of work.
//
// Nobody waits for a thread, only for a piece that a thread has begun. So one that the operating
// system holds back costs nothing: the others take its pieces.

#pragma once

#include <algorithm>
#include <cstdint>

namespace loci {

int crew_size();
void set_crew_size(int threads);

// Calls body(data, from, to, worker) until every one of `items` was in exactly one call; calls of
// one worker do not overlap, and worker 0 is the caller. Pieces have `step` items, the last of a
// worker's share fewer. Only one such job runs at a time, whatever thread asks.
using Piecework = void (*)(void* data, int64_t from, int64_t to, int worker);
void run_pieces(int64_t items, int64_t step, Piecework body, void* data);

template <class Body>
void share(int64_t items, int64_t step, Body body) {
  run_pieces(
      items, step,
      [](void* data, int64_t from, int64_t to, int worker) {
        (*static_cast<Body*>(data))(from, to, worker);
      },
      &body);
}

}  // namespace loci

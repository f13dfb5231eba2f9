#include <cstring>
#include <thread>

#include "panels.h"

namespace tmk {

thread_local Scratch scratch;
thread_local Scratch opened_scratch;

uint8_t* Scratch::get(size_t bytes) {
  if (bytes > size) {
    std::free(data);
    size = (bytes + bytes / 4 + 4095) & ~size_t(4095);
    data = (uint8_t*)std::aligned_alloc(64, size);
    if (!data) size = 0;
  }
  return data;
}

void Team::meet() {
  const int threads = omp_get_num_threads();
  if (threads == 1) return;
  const unsigned last = meetings_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    arrived_.store(0, std::memory_order_relaxed);
    meetings_.store(last + 1, std::memory_order_release);
    return;
  }
  // Who is late by more than a few microseconds may be waiting for this very processor.
  for (int i = 0; meetings_.load(std::memory_order_acquire) == last; i++)
    if (i > 1 << 13) std::this_thread::yield();
}

size_t activation_bytes(const Isa& isa, int64_t T, int64_t K) {
  const size_t codes = aligned(T * K) + aligned(T * K / 8) + aligned(T * K / 16) + aligned(T * K / 8);
  const size_t brains = isa.rounded ? aligned(2 * T * brain_stride(K)) : 0;
  return (codes > brains ? codes : brains) + 64;
}

Activations place(const Isa&, uint8_t* p, int64_t T, int64_t K) {
  Activations a{};
  a.cols = K;
  a.q = (int8_t*)p;
  a.brains = (uint16_t*)p;
  p += aligned(T * K);
  a.sum16 = (int16_t*)p;
  p += aligned(T * K / 8);
  a.sum32 = (int16_t*)p;
  p += aligned(T * K / 16);
  a.d = (float*)p;
  return a;
}

bool usable(const Isa& isa, const Linear& w) {
  if (const int bits = affine_bits(w.type))
    return isa.affine[bits].stored[0] && w.group > 0 && w.group % 32 == 0 && w.cols % w.group == 0;
  if (is_widened(w.type)) {
    if (!w.beside || w.beside->height < 1 || w.beside->width < 1) return false;
    const int bits = w.type - kCrossed;
    if (bits <= 0) return w.type == kE4M3 || (w.type == kBook && w.cols % 2 == 0);
    const int64_t size = w.beside->height;
    return (bits == 1 || bits == 2 || bits == 4 || bits == 8) && size % 32 == 0 && w.rows > 0 &&
           w.rows % size == 0 && w.cols % 32 == 0;
  }
  if (w.type == kRounded) return isa.rounded;
  return w.type >= 0 && w.type < 40 && (isa.linear[w.type].stored[0] || plain_bytes(w.type));
}

void quantize(Team& team, const Isa& isa, const float* x, int64_t stride, Activations& a, int64_t T,
              int super) {
  // Each thread has its own `a`, so no two write these.
  a.x = x;
  a.x_stride = stride;
  if (!super) return;  // the barrier before has let everybody see x
  // Of few tokens a thread takes some columns: those of one tile lie in the same lines of a cache.
  const int64_t parts = groups_of(a, super), threads = omp_get_num_threads();
  const int64_t step = T < isa.tile * threads ? (parts + threads - 1) / threads : parts;
  const int64_t pieces = (parts + step - 1) / step;
#pragma omp for schedule(static) nowait
  for (int64_t n = 0; n < T * pieces; n++) {
    const int64_t t = n % T, first = n / T * step;
    const int64_t last = first + step > parts ? parts : first + step;
    isa.quantize(x + t * stride, a, tile_at(t, 0, T, isa.tile), t, super, first, last);
  }
  team.meet();
}

void multiply(Team& team, const Isa& isa, const Product* jobs, int count, const Activations& x,
              int64_t T) {
  for (int j = 0; j < count; j++) {
    const Product& job = jobs[j];
    const Strips strips(isa, *job.w, T);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t first = 0; first < strips.count; first += strips.at_once) {
      const int64_t last = strips.end_of(first);
      products(strips, x, first, last, 0, T, job.out, job.stride,
               [&](const Strip& s, int64_t t, float* one) {
                 if (job.add) s.add(job.add + t * job.stride, one);
                 s.put(job.out + t * job.stride, one);
               });
    }
  }
  team.meet();
}

void multiply_gated(Team& team, const Isa& isa, const Linear& gate, const Linear& up, int act,
                    float* out, int64_t stride, const Activations& x, int64_t T) {
  const Strips gates(isa, gate, T), ups(isa, up, T);
#pragma omp for schedule(dynamic, 1) nowait
  for (int64_t first = 0; first < gates.count; first += gates.at_once) {
    const int64_t last = gates.end_of(first);
    // One matrix after the other, so that each is read as long streams.
    products(gates, x, first, last, 0, T, out, stride, [&](const Strip& s, int64_t t, float* one) {
      s.put(out + t * stride, one);
    });
    products(ups, x, first, last, 0, T, out, stride, [&](const Strip& s, int64_t t, float* raised) {
      float one[kMostRows];
      s.get(out + t * stride, one);
      isa.gate(act, one, raised, s.rows);
      s.put(out + t * stride, one);
    });
  }
  team.meet();
}

}  // namespace tmk

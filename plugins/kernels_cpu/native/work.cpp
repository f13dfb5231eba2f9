#include "panels.h"

namespace tmk {

thread_local Scratch scratch;

uint8_t* Scratch::get(size_t bytes) {
  if (bytes > size) {
    std::free(data);
    size = (bytes + bytes / 4 + 4095) & ~size_t(4095);
    data = (uint8_t*)std::aligned_alloc(64, size);
    if (!data) size = 0;
  }
  return data;
}

size_t activation_bytes(const Isa& isa, int64_t T, int64_t K) {
  return aligned(T * K) + (isa.wide ? aligned(2 * T * K) : 0) + aligned(T * K / 8) +
         aligned(T * K / 16) + aligned(T * K / 8) + 64;
}

Activations place(const Isa& isa, uint8_t* p, int64_t T, int64_t K) {
  Activations a{};
  a.cols = K;
  a.q = (int8_t*)p;
  p += aligned(T * K);
  if (isa.wide) {
    a.wide = (int16_t*)p;
    p += aligned(2 * T * K);
  }
  a.sum16 = (int16_t*)p;
  p += aligned(T * K / 8);
  a.sum32 = (int16_t*)p;
  p += aligned(T * K / 16);
  a.d32 = a.d256 = (float*)p;
  return a;
}

bool usable(const Isa& isa, const Linear& w) {
  if (const int bits = affine_bits(w.type))
    return isa.affine[bits][0] && w.group > 0 && w.group % 32 == 0 && w.cols % w.group == 0;
  return w.type >= 0 && w.type < 40 && (isa.linear[w.type][0] || plain_bytes(w.type));
}

void quantize(const Isa& isa, const float* x, int64_t stride, Activations& a, int64_t T,
              int super) {
  // Each thread has its own `a`, so no two write these.
  a.x = x;
  a.x_stride = stride;
  if (!super) return;  // the barrier before has let everybody see x
  const int64_t parts = a.cols / super, step = parts < 8 ? parts : 8;
  const int64_t pieces = T > 1 ? 1 : (parts + step - 1) / step;
#pragma omp for schedule(static)
  for (int64_t n = 0; n < T * pieces; n++) {
    const int64_t t = n / pieces, first = n % pieces * step;
    const int64_t last = T > 1 || first + step > parts ? parts : first + step;
    isa.quantize(x + t * stride, a, t, super, first, last);
  }
}

void multiply(const Isa& isa, const Product* jobs, int count, const Activations& x, int64_t T) {
  const int64_t step = token_block(isa, T), group = panels_at_once(T);
  int64_t total = 0;
  for (int j = 0; j < count; j++) total += (panels_of(isa, *jobs[j].w) + group - 1) / group;
#pragma omp for schedule(dynamic, 1)
  for (int64_t n = 0; n < total; n++) {
    int64_t first = n;
    const Product* job = jobs;
    for (;; job++) {
      const int64_t own = (panels_of(isa, *job->w) + group - 1) / group;
      if (first < own) break;
      first -= own;
    }
    first *= group;
    const int64_t panels = panels_of(isa, *job->w);
    const int64_t last = first + group < panels ? first + group : panels;
    const auto put = [&](int64_t t, int64_t row, int rows, const float* values) {
      float* o = job->out + t * job->stride + row;
      const float* bias = job->w->bias;
      const float* add = job->add ? job->add + t * job->stride + row : nullptr;
      for (int r = 0; r < rows; r++)
        o[r] = (bias ? values[r] + bias[row + r] : values[r]) + (add ? add[r] : 0.0f);
    };
    for (int64_t t = 0; t < T; t += step)
      for (int64_t i = first; i < last; i++)
        panel_times(isa, *job->w, x, i, t, t + step < T ? t + step : T, put);
  }
}

void multiply_gated(const Isa& isa, const Linear& gate, const Linear& up, int act, float* out,
                    int64_t stride, const Activations& x, int64_t T) {
  const int64_t step = token_block(isa, T), group = panels_at_once(T);
  const int64_t panels = panels_of(isa, gate);
#pragma omp for schedule(dynamic, 1)
  for (int64_t first = 0; first < panels; first += group) {
    const int64_t last = first + group < panels ? first + group : panels;
    for (int64_t t = 0; t < T; t += step) {
      const int64_t end = t + step < T ? t + step : T;
      for (int64_t i = first; i < last; i++) {
        const auto keep = [&](int64_t s, int64_t row, int rows, const float* values) {
          float* o = out + s * stride + row;
          for (int r = 0; r < rows; r++) o[r] = gate.bias ? values[r] + gate.bias[row + r] : values[r];
        };
        const auto combine = [&](int64_t s, int64_t row, int rows, const float* values) {
          alignas(64) float raised[kMaxLanes];
          for (int r = 0; r < rows; r++) raised[r] = up.bias ? values[r] + up.bias[row + r] : values[r];
          isa.gate(act, out + s * stride + row, raised, rows);
        };
        panel_times(isa, gate, x, i, t, end, keep);
        panel_times(isa, up, x, i, t, end, combine);
      }
    }
  }
}

}  // namespace tmk

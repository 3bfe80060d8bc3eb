#include "ops/normalize.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"

namespace softgate {

Tensor normalize(const Tensor& x, double eps, std::optional<Tensor> out) {
  check_tensor("normalize", "x", x, DType::float32, x.shape());
  const Rows in = as_rows("normalize", "x", x);
  check(eps >= 0, "normalize: eps is ", eps, ", expected at least 0");
  const Tensor result = resolve_out("normalize", std::move(out), DType::float32, x.shape());
  check_overlap("normalize", result, "x", x, true);
  const Rows to = as_rows("normalize", "out", result);
  if (result.numel() == 0) return result;
  cpu::kernels().normalize({
      .x = x.data<float>(),
      .out = result.data<float>(),
      .rows = in.rows,
      .hidden = in.columns,
      .x_stride = in.stride,
      .out_stride = to.stride,
      .eps = static_cast<float>(eps),
  });
  return result;
}

}  // namespace softgate

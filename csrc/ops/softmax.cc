#include "ops/softmax.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "ops/arguments.h"

namespace softgate {

Tensor softmax(const Tensor& x, std::optional<Tensor> out) {
  check_tensor("softmax", "x", x, DType::float32, x.shape());
  const Rows in = as_rows("softmax", "x", x);
  const Tensor result = resolve_out("softmax", std::move(out), DType::float32, x.shape());
  check_overlap("softmax", result, "x", x, true);
  const Rows to = as_rows("softmax", "out", result);
  if (result.numel() == 0) return result;
  cpu::kernels().softmax({
      .x = x.data<float>(),
      .out = result.data<float>(),
      .rows = in.rows,
      .columns = in.columns,
      .x_stride = in.stride,
      .out_stride = to.stride,
  });
  return result;
}

}  // namespace softgate

#include "ops/normalize.h"

#include "ops/dispatch.h"

namespace softgate {

Tensor normalize(const Tensor& x, double eps, std::optional<Tensor> out) {
  const DType dtype = check_float("normalize", "x", x);
  const Device device = x.device();
  const Rows in = as_rows("normalize", "x", x);
  check(eps >= 0, "normalize: eps is ", eps, ", expected at least 0");
  const Tensor result = resolve_out("normalize", std::move(out), dtype, x.shape(), device);
  check_overlap("normalize", result, "x", x, true);
  const Rows to = as_rows("normalize", "out", result);
  if (result.numel() == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const NormalizeArgs<T> args{
        .x = x.data<T>(),
        .out = result.data<T>(),
        .rows = in.rows,
        .hidden = in.columns,
        .x_stride = in.stride,
        .out_stride = to.stride,
        .eps = static_cast<float>(eps),
    };
    run_kernel<T>(device, args, &cpu::Kernels::normalize, &cuda::Kernels<T>::normalize);
  });
  return result;
}

}  // namespace softgate

#include "ops/softmax.h"

#include "ops/dispatch.h"

namespace softgate {

Tensor softmax(const Tensor& x, std::optional<Tensor> out) {
  const DType dtype = check_float("softmax", "x", x);
  const Device device = x.device();
  const Rows in = as_rows("softmax", "x", x);
  const Tensor result = resolve_out("softmax", std::move(out), dtype, x.shape(), device);
  check_overlap("softmax", result, "x", x, true);
  const Rows to = as_rows("softmax", "out", result);
  if (result.numel() == 0) return result;
  dispatch(dtype, [&]<class T>(T) {
    const SoftmaxArgs<T> args{
        .x = x.data<T>(),
        .out = result.data<T>(),
        .rows = in.rows,
        .columns = in.columns,
        .x_stride = in.stride,
        .out_stride = to.stride,
    };
    run_kernel<T>(device, args, &cpu::Kernels::softmax, &cuda::Kernels<T>::softmax);
  });
  return result;
}

}  // namespace softgate

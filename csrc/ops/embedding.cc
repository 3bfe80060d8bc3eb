#include "ops/embedding.h"

#include "ops/dispatch.h"

namespace softgate {
namespace {

constexpr const char* kOp = "embedding";

std::string indexed(const char* list, std::size_t i) { return concat(list, "[", i, "]"); }

template <class Id>
void check_id_values(const std::string& argument, const Tensor& ids, std::int64_t rows) {
  const Id* id = ids.data<Id>();
  for (std::int64_t i = 0; i < ids.numel(); ++i) {
    if (id[i] < 0 || id[i] >= rows) [[unlikely]] {
      check(false, kOp, ": ", argument, "[", i, "] is ", id[i], ", expected 0 <= id < ", rows);
    }
  }
}

void check_ids(const std::string& argument, const Tensor& ids, std::int64_t tokens,
               std::int64_t rows, Device device) {
  check_type(ids.dtype() == DType::int32 || ids.dtype() == DType::int64, kOp, ": ", argument,
             " has dtype ", name(ids.dtype()), ", expected int32 or int64");
  check_tensor(kOp, argument.c_str(), ids, ids.dtype(), {tokens}, device);
  if (device.kind != DeviceKind::cpu) return;
  if (ids.dtype() == DType::int64)
    check_id_values<std::int64_t>(argument, ids, rows);
  else
    check_id_values<std::int32_t>(argument, ids, rows);
}

void check_norm(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, DType dtype,
                std::int64_t hidden, Device device, double eps) {
  check(weight || !bias, kOp, ": norm_bias is given without norm_weight");
  if (weight) check_tensor(kOp, "norm_weight", *weight, dtype, {hidden}, device);
  if (bias) check_tensor(kOp, "norm_bias", *bias, dtype, {hidden}, device);
  check(eps >= 0, kOp, ": eps is ", eps, ", expected at least 0");
}

}  // namespace

Tensor embedding(const std::vector<Tensor>& ids, const std::vector<Tensor>& tables,
                 const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias,
                 double eps, std::optional<Tensor> out) {
  check(!tables.empty() && tables.size() <= kMaxTables, kOp, ": tables has ", tables.size(),
        " entries, expected 1 to ", kMaxTables);
  check(ids.size() == tables.size(), kOp, ": ids has ", ids.size(),
        " entries, expected one for each of ", tables.size(), " tables");
  const DType dtype = check_float(kOp, "tables[0]", tables[0]);
  const Device device = tables[0].device();
  check_tensor(kOp, "tables[0]", tables[0], dtype, {-1, -1}, device);
  check(ids[0].dim() == 1, kOp, ": ids[0] has shape ", ids[0].shape(), ", expected [tokens]");
  const std::int64_t tokens = ids[0].size(0), hidden = tables[0].size(1);
  for (std::size_t t = 0; t < tables.size(); ++t) {
    check_tensor(kOp, indexed("tables", t).c_str(), tables[t], dtype, {-1, hidden}, device);
    check_ids(indexed("ids", t), ids[t], tokens, tables[t].size(0), device);
  }
  check_norm(norm_weight, norm_bias, dtype, hidden, device, eps);

  const Tensor result = resolve_out(kOp, std::move(out), dtype, {tokens, hidden}, device);
  for (std::size_t t = 0; t < tables.size(); ++t) {
    check_overlap(kOp, result, indexed("tables", t).c_str(), tables[t], false);
    check_overlap(kOp, result, indexed("ids", t).c_str(), ids[t], false);
  }
  if (norm_weight) check_overlap(kOp, result, "norm_weight", *norm_weight, false);
  if (norm_bias) check_overlap(kOp, result, "norm_bias", *norm_bias, false);
  if (result.numel() == 0) return result;

  dispatch(dtype, [&]<class T>(T) {
    EmbeddingArgs<T> args{
        .num_tables = static_cast<int>(tables.size()),
        .tables = {},
        .table_strides = {},
        .table_rows = {},
        .ids = {},
        .ids_are_int64 = {},
        .norm_weight = norm_weight ? norm_weight->data<T>() : nullptr,
        .norm_bias = norm_bias ? norm_bias->data<T>() : nullptr,
        .out = result.data<T>(),
        .tokens = tokens,
        .hidden = hidden,
        .out_stride = result.stride(0),
        .eps = static_cast<float>(eps),
    };
    for (std::size_t t = 0; t < tables.size(); ++t) {
      args.tables[t] = tables[t].data<T>();
      args.table_strides[t] = tables[t].stride(0);
      args.table_rows[t] = tables[t].size(0);
      args.ids[t] = ids[t].raw();
      args.ids_are_int64[t] = ids[t].dtype() == DType::int64;
    }
    run_kernel<T>(device, args, &cpu::Kernels::embedding, &cuda::Kernels<T>::embedding);
  });
  return result;
}

}  // namespace softgate

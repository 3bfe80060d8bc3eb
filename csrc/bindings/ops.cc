// The functions that softgate.ops calls.
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/check.h"
#include "ops/add_norm.h"
#include "ops/attention.h"
#include "ops/cached_attention.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/normalize.h"
#include "ops/pool.h"
#include "ops/recurrent.h"
#include "ops/rotary.h"
#include "ops/sample.h"
#include "ops/softmax.h"
#include "ops/source_attention.h"

namespace softgate::bindings {
namespace {

const PackedWeight& to_packed_weight(const char* op, py::handle object) {
  py::detail::make_caster<PackedWeight> caster;
  if (!caster.load(object, false) || object.is_none()) {
    check_type(false, op, ": weight is a ", Py_TYPE(object.ptr())->tp_name,
               ", expected a PackedWeight (softgate.ops.pack makes one)");
  }
  return py::detail::cast_op<const PackedWeight&>(caster);
}

std::vector<Tensor> to_tensors(const Argument& argument, const py::list& objects) {
  std::vector<Tensor> tensors;
  tensors.reserve(objects.size());
  Argument element = argument;
  for (const py::handle object : objects) {
    ++element.index;
    tensors.push_back(to_tensor(element, object));
  }
  return tensors;
}

PackedWeight pack(py::handle weight, const std::optional<std::string>& dtype, bool gated) {
  const Tensor tensor = to_tensor({"pack", "weight", "float32, float16 or bfloat16"}, weight);
  return without_gil([&] { return PackedWeight(tensor, dtype, gated); });
}

PackedWeight pack_groups(py::handle values, py::handle scales, py::handle minimums, int bits,
                         bool gated) {
  const char* op = "pack_groups";
  const Tensor values_ = to_tensor({op, "values", "int8"}, values);
  const Tensor scales_ = to_tensor({op, "scales"}, scales);
  const auto minimums_ = to_optional_tensor({op, "minimums"}, minimums);
  return without_gil([&] { return PackedWeight(values_, scales_, minimums_, bits, gated); });
}

py::tuple quantized(const PackedWeight& weight) {
  QuantizedTensors tensors = without_gil([&] { return weight.quantized(); });
  return py::make_tuple(std::move(tensors.values), std::move(tensors.scales),
                        std::move(tensors.minimums));
}

py::object gather(py::handle weight, py::handle ids, double scale, py::handle residual,
                  py::handle out) {
  const PackedWeight& weight_ = to_packed_weight("gather", weight);
  const Tensor ids_ = to_tensor({"gather", "ids", "int32 or int64"}, ids);
  const auto residual_ = to_optional_tensor({"gather", "residual"}, residual);
  auto out_ = to_optional_tensor({"gather", "out"}, out);
  Tensor result = without_gil(
      [&] { return softgate::gather(weight_, ids_, scale, residual_, std::move(out_)); });
  return to_result(std::move(result), ids, out);
}

py::object linear(py::handle x, py::handle weight, py::handle bias, const std::string& activation,
                  py::handle residual, py::handle out) {
  const Tensor x_ = to_tensor({"linear", "x"}, x);
  const PackedWeight& weight_ = to_packed_weight("linear", weight);
  const auto bias_ = to_optional_tensor({"linear", "bias"}, bias);
  const auto residual_ = to_optional_tensor({"linear", "residual"}, residual);
  auto out_ = to_optional_tensor({"linear", "out"}, out);
  Tensor result = without_gil(
      [&] { return softgate::linear(x_, weight_, bias_, activation, residual_, std::move(out_)); });
  return to_result(std::move(result), x, out);
}

py::object attention(py::handle q, py::handle k, py::handle v, py::handle cu_seqlens_q,
                     py::handle cu_seqlens_k, std::optional<double> scale, bool causal,
                     std::pair<std::int64_t, std::int64_t> window, py::handle mask,
                     py::handle relative_bias, double softcap, bool return_lse, bool return_weights,
                     py::handle out) {
  const Tensor q_ = to_tensor({"attention", "q"}, q);
  const Tensor k_ = to_tensor({"attention", "k"}, k);
  const Tensor v_ = to_tensor({"attention", "v"}, v);
  const SequenceOffsets lens_q = to_offsets({"attention", "cu_seqlens_q", "int32"}, cu_seqlens_q);
  const SequenceOffsets lens_k =
      cu_seqlens_k.is(cu_seqlens_q)
          ? lens_q
          : to_offsets({"attention", "cu_seqlens_k", "int32"}, cu_seqlens_k);
  const AttentionOptions options{
      .scale = scale,
      .causal = causal,
      .window = window,
      .mask = to_optional_tensor({"attention", "mask", "bool or float32"}, mask),
      .relative_bias = to_optional_tensor({"attention", "relative_bias"}, relative_bias),
      .softcap = softcap,
      .return_lse = return_lse,
      .return_weights = return_weights,
  };
  auto out_ = to_optional_tensor({"attention", "out"}, out);
  AttentionResult result = without_gil(
      [&] { return softgate::attention(q_, k_, v_, lens_q, lens_k, options, std::move(out_)); });
  py::object first = to_result(std::move(result.out), q, out);
  if (!result.lse && !result.weights) return first;
  py::list all;
  all.append(std::move(first));
  if (result.lse) all.append(to_result(*std::move(result.lse), q, py::none()));
  if (result.weights) all.append(to_result(*std::move(result.weights), q, py::none()));
  return py::tuple(all);
}

py::object cached_attention(py::handle q, py::handle k_cache, py::handle v_cache,
                            py::handle cu_seqlens_q, py::handle lengths_k, py::handle cache_rows,
                            py::handle relative_bias, std::optional<double> scale,
                            std::pair<std::int64_t, std::int64_t> window, bool causal,
                            double softcap, py::handle out) {
  const char* op = "cached_attention";
  const Tensor q_ = to_tensor({op, "q"}, q);
  const Tensor k_ = to_tensor({op, "k_cache"}, k_cache);
  const Tensor v_ = to_tensor({op, "v_cache"}, v_cache);
  const SequenceOffsets lens_q = to_offsets({op, "cu_seqlens_q", "int32"}, cu_seqlens_q);
  const Tensor lens_k = to_tensor({op, "lengths_k", "int32"}, lengths_k);
  const CachedAttentionOptions options{
      .cache_rows = to_optional_tensor({op, "cache_rows", "int32"}, cache_rows),
      .relative_bias = to_optional_tensor({op, "relative_bias"}, relative_bias),
      .scale = scale,
      .window = window,
      .causal = causal,
      .softcap = softcap,
  };
  auto out_ = to_optional_tensor({op, "out"}, out);
  Tensor result = without_gil([&] {
    return softgate::cached_attention(q_, k_, v_, lens_q, lens_k, options, std::move(out_));
  });
  return to_result(std::move(result), q, out);
}

py::object add_layer_norm(py::handle x, py::handle residual, py::handle weight, py::handle bias,
                          double eps, py::handle out, py::handle sum_out) {
  const char* op = "add_layer_norm";
  const Tensor x_ = to_tensor({op, "x"}, x);
  const auto residual_ = to_optional_tensor({op, "residual"}, residual);
  const Tensor weight_ = to_tensor({op, "weight"}, weight);
  const auto bias_ = to_optional_tensor({op, "bias"}, bias);
  auto out_ = to_optional_tensor({op, "out"}, out);
  auto sum_out_ = to_optional_tensor({op, "sum_out"}, sum_out);
  Tensor result = without_gil([&] {
    return softgate::add_layer_norm(x_, residual_, weight_, bias_, eps, std::move(out_),
                                    std::move(sum_out_));
  });
  return to_result(std::move(result), x, out);
}

py::object add_rms_norm(py::handle x, py::handle residual, py::handle weight, double eps,
                        py::handle out, py::handle sum_out) {
  const char* op = "add_rms_norm";
  const Tensor x_ = to_tensor({op, "x"}, x);
  const auto residual_ = to_optional_tensor({op, "residual"}, residual);
  const Tensor weight_ = to_tensor({op, "weight"}, weight);
  auto out_ = to_optional_tensor({op, "out"}, out);
  auto sum_out_ = to_optional_tensor({op, "sum_out"}, sum_out);
  Tensor result = without_gil([&] {
    return softgate::add_rms_norm(x_, residual_, weight_, eps, std::move(out_),
                                  std::move(sum_out_));
  });
  return to_result(std::move(result), x, out);
}

py::object embedding(const py::list& ids, const py::list& tables, py::handle norm_weight,
                     py::handle norm_bias, double eps, py::handle out) {
  check(!ids.empty(), "embedding: ids is empty, expected 1 to ", kMaxTables, " arrays");
  const auto ids_ = to_tensors({"embedding", "ids", "int32 or int64"}, ids);
  const auto tables_ = to_tensors({"embedding", "tables"}, tables);
  const auto weight_ = to_optional_tensor({"embedding", "norm_weight"}, norm_weight);
  const auto bias_ = to_optional_tensor({"embedding", "norm_bias"}, norm_bias);
  auto out_ = to_optional_tensor({"embedding", "out"}, out);
  Tensor result = without_gil(
      [&] { return softgate::embedding(ids_, tables_, weight_, bias_, eps, std::move(out_)); });
  return to_result(std::move(result), py::object(ids[0]), out);
}

py::object softmax(py::handle x, py::handle out) {
  const Tensor x_ = to_tensor({"softmax", "x"}, x);
  auto out_ = to_optional_tensor({"softmax", "out"}, out);
  Tensor result = without_gil([&] { return softgate::softmax(x_, std::move(out_)); });
  return to_result(std::move(result), x, out);
}

py::object pool(py::handle x, py::handle cu_seqlens, const std::string& mode, py::handle out) {
  const Tensor x_ = to_tensor({"pool", "x"}, x);
  auto out_ = to_optional_tensor({"pool", "out"}, out);
  const auto run = [&](const auto& cu_seqlens_) {
    return without_gil([&] { return softgate::pool(x_, cu_seqlens_, mode, std::move(out_)); });
  };
  // Kernels read the offsets: where they are but an array, none are fetched.
  const SequenceOffsets* offsets = as_offsets(cu_seqlens);
  Tensor result =
      offsets ? run(*offsets) : run(to_tensor({"pool", "cu_seqlens", "int32"}, cu_seqlens));
  return to_result(std::move(result), x, out);
}

py::object normalize(py::handle x, double eps, py::handle out) {
  const Tensor x_ = to_tensor({"normalize", "x"}, x);
  auto out_ = to_optional_tensor({"normalize", "out"}, out);
  Tensor result = without_gil([&] { return softgate::normalize(x_, eps, std::move(out_)); });
  return to_result(std::move(result), x, out);
}

RecurrentWeight pack_recurrent(const std::string& kind, py::handle weight_ih, py::handle weight_hh,
                               py::handle bias_ih, py::handle bias_hh, py::handle weight_hr,
                               const std::string& dtype) {
  const char* op = "pack_recurrent";
  const Tensor ih = to_tensor({op, "weight_ih"}, weight_ih);
  const Tensor hh = to_tensor({op, "weight_hh"}, weight_hh);
  const auto bias_ih_ = to_optional_tensor({op, "bias_ih"}, bias_ih);
  const auto bias_hh_ = to_optional_tensor({op, "bias_hh"}, bias_hh);
  const auto hr = to_optional_tensor({op, "weight_hr"}, weight_hr);
  return without_gil([&] { return RecurrentWeight(kind, ih, hh, bias_ih_, bias_hh_, hr, dtype); });
}

py::object rotary(py::handle qkv, py::handle cu_seqlens, py::handle starts, py::handle k_cache,
                  py::handle v_cache, std::int64_t num_heads, py::handle cos, py::handle sin,
                  py::handle q_norm, py::handle k_norm, double eps, bool interleaved,
                  py::handle cache_rows, py::handle out) {
  const char* op = "rotary";
  const Tensor qkv_ = to_tensor({op, "qkv"}, qkv);
  const SequenceOffsets cu_seqlens_ = to_offsets({op, "cu_seqlens", "int32"}, cu_seqlens);
  const Tensor starts_ = to_tensor({op, "starts", "int32"}, starts);
  const Tensor k_ = to_tensor({op, "k_cache"}, k_cache);
  const Tensor v_ = to_tensor({op, "v_cache"}, v_cache);
  const RotaryOptions options{
      .num_heads = num_heads,
      .cos = to_optional_tensor({op, "cos"}, cos),
      .sin = to_optional_tensor({op, "sin"}, sin),
      .q_norm = to_optional_tensor({op, "q_norm"}, q_norm),
      .k_norm = to_optional_tensor({op, "k_norm"}, k_norm),
      .eps = eps,
      .interleaved = interleaved,
      .cache_rows = to_optional_tensor({op, "cache_rows", "int32"}, cache_rows),
  };
  auto out_ = to_optional_tensor({op, "out"}, out);
  Tensor result = without_gil([&] {
    return softgate::rotary(qkv_, cu_seqlens_, starts_, k_, v_, options, std::move(out_));
  });
  return to_result(std::move(result), qkv, out);
}

py::object penalize(py::handle logits, py::handle ids, py::handle cu_ids, double penalty) {
  const Tensor logits_ = to_tensor({"penalize", "logits"}, logits);
  const Tensor ids_ = to_tensor({"penalize", "ids", "int32"}, ids);
  const Tensor cu_ids_ = to_tensor({"penalize", "cu_ids", "int32"}, cu_ids);
  without_gil([&] { softgate::penalize(logits_, ids_, cu_ids_, penalty); });
  return py::reinterpret_borrow<py::object>(logits);
}

py::object sample(py::handle logits, py::handle random, double temperature, std::int64_t top_k,
                  double top_p, double min_p) {
  const Tensor logits_ = to_tensor({"sample", "logits"}, logits);
  const Tensor random_ = to_tensor({"sample", "random"}, random);
  const Sampling sampling{
      .temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
  Tensor result = without_gil([&] { return softgate::sample(logits_, random_, sampling); });
  return to_result(std::move(result), logits, py::none());
}

py::tuple source_attention(py::handle query, py::handle keys, py::handle values,
                           py::handle cu_seqlens, py::handle sources, py::handle v) {
  const char* op = "source_attention";
  const Tensor query_ = to_tensor({op, "query"}, query);
  const Tensor keys_ = to_tensor({op, "keys"}, keys);
  const Tensor values_ = to_tensor({op, "values"}, values);
  const Tensor cu_seqlens_ = to_tensor({op, "cu_seqlens", "int32"}, cu_seqlens);
  const Tensor sources_ = to_tensor({op, "sources", "int32"}, sources);
  const auto v_ = to_optional_tensor({op, "v"}, v);
  SourceAttention result = without_gil([&] {
    return softgate::source_attention(query_, keys_, values_, cu_seqlens_, sources_, v_);
  });
  return py::make_tuple(to_result(std::move(result.out), query, py::none()),
                        to_result(std::move(result.weights), query, py::none()));
}

py::object softcap(py::handle logits, double cap) {
  const Tensor logits_ = to_tensor({"softcap", "logits"}, logits);
  without_gil([&] { softgate::softcap(logits_, cap); });
  return py::reinterpret_borrow<py::object>(logits);
}

py::object token_logprobs(py::handle logits, py::handle ids) {
  const Tensor logits_ = to_tensor({"token_logprobs", "logits"}, logits);
  const Tensor ids_ = to_tensor({"token_logprobs", "ids", "int32"}, ids);
  Tensor result = without_gil([&] { return softgate::token_logprobs(logits_, ids_); });
  return to_result(std::move(result), logits, py::none());
}

py::tuple top_continuations(py::handle logits, py::handle scores, std::int64_t count,
                            py::handle banned, py::handle cu_banned) {
  const char* op = "top_continuations";
  const Tensor logits_ = to_tensor({op, "logits"}, logits);
  const Tensor scores_ = to_tensor({op, "scores"}, scores);
  const Tensor banned_ = to_tensor({op, "banned", "int32"}, banned);
  const Tensor cu_banned_ = to_tensor({op, "cu_banned", "int32"}, cu_banned);
  Continuations result = without_gil(
      [&] { return softgate::top_continuations(logits_, scores_, count, banned_, cu_banned_); });
  return py::make_tuple(to_result(std::move(result.sums), logits, py::none()),
                        to_result(std::move(result.rows), logits, py::none()),
                        to_result(std::move(result.ids), logits, py::none()));
}

const RecurrentWeight& to_recurrent_weight(const char* op, py::handle object) {
  py::detail::make_caster<RecurrentWeight> caster;
  if (!caster.load(object, false) || object.is_none()) {
    check_type(false, op, ": weights has a ", Py_TYPE(object.ptr())->tp_name,
               ", expected a RecurrentWeight (softgate.ops.pack_recurrent makes one)");
  }
  return py::detail::cast_op<const RecurrentWeight&>(caster);
}

py::tuple recurrent(const std::string& op, py::handle x, py::handle cu_seqlens,
                    const py::list& weights, py::handle h0, py::handle c0, py::handle h0_rows,
                    const std::string& direction, py::handle out) {
  const char* name = op.c_str();
  const Tensor x_ = to_tensor({name, "x"}, x);
  const SequenceOffsets cu_seqlens_ = to_offsets({name, "cu_seqlens", "int32"}, cu_seqlens);
  std::vector<const RecurrentWeight*> weights_;
  for (const py::handle weight : weights) weights_.push_back(&to_recurrent_weight(name, weight));
  const auto h0_ = to_optional_tensor({name, "h0"}, h0);
  const auto c0_ = to_optional_tensor({name, "c0"}, c0);
  const auto h0_rows_ = to_optional_tensor({name, "h0_rows", "int32"}, h0_rows);
  auto out_ = to_optional_tensor({name, "out"}, out);
  RecurrentResult result = without_gil([&] {
    return softgate::recurrent(name, x_, cu_seqlens_, weights_, h0_, c0_, h0_rows_, direction,
                               std::move(out_));
  });
  py::object first = to_result(std::move(result.out), x, out);
  py::object h_n = to_result(std::move(result.h_n), x, py::none());
  if (!result.c_n) return py::make_tuple(std::move(first), std::move(h_n));
  return py::make_tuple(std::move(first), std::move(h_n),
                        to_result(*std::move(result.c_n), x, py::none()));
}

py::object recurrent_cell(const std::string& op, py::handle x, py::handle weight, py::handle h,
                          py::handle c) {
  const char* name = op.c_str();
  const Tensor x_ = to_tensor({name, "x"}, x);
  const RecurrentWeight& weight_ = to_recurrent_weight(name, weight);
  const Tensor h_ = to_tensor({name, "h"}, h);
  const auto c_ = to_optional_tensor({name, "c"}, c);
  auto [next_h, next_c] =
      without_gil([&] { return softgate::recurrent_cell(name, x_, weight_, h_, c_); });
  py::object first = to_result(std::move(next_h), x, py::none());
  if (!next_c) return first;
  return py::make_tuple(std::move(first), to_result(*std::move(next_c), x, py::none()));
}

RecurrentWeight with_inputs(const RecurrentWeight& weight, py::handle weight_ih) {
  const Tensor ih = to_tensor({"with_inputs", "weight_ih"}, weight_ih);
  return without_gil([&] { return weight.with_inputs(ih); });
}

py::dict unpack(const RecurrentWeight& weight) {
  py::dict arrays;
  for (auto& [name, tensor] : without_gil([&] { return weight.unpack(); }))
    arrays[py::str(name)] = py::cast(std::move(tensor));
  return arrays;
}

// What the layout of a weight hangs on.
template <class Weight>
std::string layout(const Weight& weight) {
  return weight.device().kind == DeviceKind::cpu ? "isa=" + weight.isa()
                                                 : "device=" + name(weight.device());
}

template <class Weight>
std::optional<std::string> isa(const Weight& weight) {
  return weight.device().kind == DeviceKind::cpu ? std::optional(weight.isa()) : std::nullopt;
}

std::string repr(const RecurrentWeight& weight) {
  return concat("RecurrentWeight(kind=", name(weight.kind()), ", input_size=", weight.input_size(),
                ", hidden_size=", weight.hidden_size(), ", output_size=", weight.output_size(),
                ", dtype=", name(weight.dtype()), ", ", layout(weight), ")");
}

std::string repr(const PackedWeight& weight) {
  return concat("PackedWeight(shape=(", weight.out_features(), ", ", weight.in_features(),
                "), dtype=", name(weight.type()), weight.format().grouped ? ", group_size=32" : "",
                weight.format().gated ? ", gated=True" : "", ", ", layout(weight), ")");
}

}  // namespace

void register_ops(py::module_& m) {
  using py::arg;
  py::class_<PackedWeight>(m, "PackedWeight", py::is_final())
      .def_property_readonly("in_features", &PackedWeight::in_features)
      .def_property_readonly("out_features", &PackedWeight::out_features)
      .def_property_readonly("shape",
                             [](const PackedWeight& weight) {
                               return py::make_tuple(weight.out_features(), weight.in_features());
                             })
      .def_property_readonly("dtype",
                             [](const PackedWeight& weight) { return name(weight.type()); })
      .def_property_readonly(
          "group_size",
          [](const PackedWeight& weight) { return weight.format().grouped ? kGroupSize : 0; })
      .def_property_readonly("gated",
                             [](const PackedWeight& weight) { return weight.format().gated; })
      .def_property_readonly("nbytes", &PackedWeight::bytes)
      .def_property_readonly("device",
                             [](const PackedWeight& weight) { return name(weight.device()); })
      .def_property_readonly("isa", &isa<PackedWeight>)
      .def("unpack", &PackedWeight::unpack, py::call_guard<ReleasedGil>())
      .def("quantized", &quantized)
      .def("__repr__", py::overload_cast<const PackedWeight&>(&repr));

  py::class_<RecurrentWeight>(m, "RecurrentWeight", py::is_final())
      .def_property_readonly("kind",
                             [](const RecurrentWeight& weight) { return name(weight.kind()); })
      .def_property_readonly("input_size", &RecurrentWeight::input_size)
      .def_property_readonly("hidden_size", &RecurrentWeight::hidden_size)
      .def_property_readonly("output_size", &RecurrentWeight::output_size)
      .def_property_readonly("dtype",
                             [](const RecurrentWeight& weight) { return name(weight.dtype()); })
      .def_property_readonly("nbytes", &RecurrentWeight::bytes)
      .def_property_readonly("device",
                             [](const RecurrentWeight& weight) { return name(weight.device()); })
      .def_property_readonly("isa", &isa<RecurrentWeight>)
      .def("unpack", &unpack)
      .def("with_inputs", &with_inputs, arg("weight_ih"))
      .def("__repr__", py::overload_cast<const RecurrentWeight&>(&repr));

  m.def("pack", &pack, arg("weight"), arg("dtype"), arg("gated"));
  m.def("pack_groups", &pack_groups, arg("values"), arg("scales"), arg("minimums"), arg("bits"),
        arg("gated"));
  m.def("gather", &gather, arg("weight"), arg("ids"), arg("scale"), arg("residual"), arg("out"));
  m.def("linear", &linear, arg("x"), arg("weight"), arg("bias"), arg("activation"), arg("residual"),
        arg("out"));
  m.def("attention", &attention, arg("q"), arg("k"), arg("v"), arg("cu_seqlens_q"),
        arg("cu_seqlens_k"), arg("scale"), arg("causal"), arg("window"), arg("mask"),
        arg("relative_bias"), arg("softcap"), arg("return_lse"), arg("return_weights"), arg("out"));
  m.def("cached_attention", &cached_attention, arg("q"), arg("k_cache"), arg("v_cache"),
        arg("cu_seqlens_q"), arg("lengths_k"), arg("cache_rows"), arg("relative_bias"),
        arg("scale"), arg("window"), arg("causal"), arg("softcap"), arg("out"));
  m.def("add_layer_norm", &add_layer_norm, arg("x"), arg("residual"), arg("weight"), arg("bias"),
        arg("eps"), arg("out"), arg("sum_out"));
  m.def("add_rms_norm", &add_rms_norm, arg("x"), arg("residual"), arg("weight"), arg("eps"),
        arg("out"), arg("sum_out"));
  m.def("embedding", &embedding, arg("ids"), arg("tables"), arg("norm_weight"), arg("norm_bias"),
        arg("eps"), arg("out"));
  m.def("pack_recurrent", &pack_recurrent, arg("kind"), arg("weight_ih"), arg("weight_hh"),
        arg("bias_ih"), arg("bias_hh"), arg("weight_hr"), arg("dtype"));
  m.def("recurrent", &recurrent, arg("op"), arg("x"), arg("cu_seqlens"), arg("weights"), arg("h0"),
        arg("c0"), arg("h0_rows"), arg("direction"), arg("out"));
  m.def("recurrent_cell", &recurrent_cell, arg("op"), arg("x"), arg("weight"), arg("h"), arg("c"));
  m.def("softmax", &softmax, arg("x"), arg("out"));
  m.def("pool", &pool, arg("x"), arg("cu_seqlens"), arg("mode"), arg("out"));
  m.def("normalize", &normalize, arg("x"), arg("eps"), arg("out"));
  m.def("penalize", &penalize, arg("logits"), arg("ids"), arg("cu_ids"), arg("penalty"));
  m.def("rotary", &rotary, arg("qkv"), arg("cu_seqlens"), arg("starts"), arg("k_cache"),
        arg("v_cache"), arg("num_heads"), arg("cos"), arg("sin"), arg("q_norm"), arg("k_norm"),
        arg("eps"), arg("interleaved"), arg("cache_rows"), arg("out"));
  m.def("sample", &sample, arg("logits"), arg("random"), arg("temperature"), arg("top_k"),
        arg("top_p"), arg("min_p"));
  m.def("source_attention", &source_attention, arg("query"), arg("keys"), arg("values"),
        arg("cu_seqlens"), arg("sources"), arg("v"));
  m.def("softcap", &softcap, arg("logits"), arg("cap"));
  m.def("token_logprobs", &token_logprobs, arg("logits"), arg("ids"));
  m.def("top_continuations", &top_continuations, arg("logits"), arg("scores"), arg("count"),
        arg("banned"), arg("cu_banned"));
}

}  // namespace softgate::bindings

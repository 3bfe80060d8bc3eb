#include "cpu/kernels.h"
#include "cpu/row_norm.h"

namespace softgate::cpu::SOFTGATE_ISA {

void embedding(const EmbeddingArgs<float>& args);

namespace {

// The table rows of one token.
struct TableRows {
  const float* of[kMaxTables];
};

std::int64_t id_at(const EmbeddingArgs<float>& args, int table, std::int64_t token) {
  return args.ids_are_int64[table] ? static_cast<const std::int64_t*>(args.ids[table])[token]
                                   : static_cast<const std::int32_t*>(args.ids[table])[token];
}

TableRows rows_of(const EmbeddingArgs<float>& args, std::int64_t token) {
  TableRows rows{};
  for (int t = 0; t < args.num_tables; ++t)
    rows.of[t] = args.tables[t] + id_at(args, t, token) * args.table_strides[t];
  return rows;
}

// out = the sum of the rows, added from the first to the last; returns the sum over out.
template <int kTables>
float add_rows(const TableRows& rows, std::int64_t n, float* out) {
  return sum(accumulate(n, zero(), [=](vf& acc, std::int64_t i, auto lanes) {
    vf v = load(rows.of[0] + i, lanes);
    for (int t = 1; t < kTables; ++t) v = add(v, load(rows.of[t] + i, lanes));
    store(out + i, v, lanes);
    acc = add(acc, v);
  }));
}

template <int kTables>
void embed(const EmbeddingArgs<float>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = args.hidden;
  for (std::int64_t token = begin; token < end; ++token) {
    float* out = args.out + token * args.out_stride;
    const float total = add_rows<kTables>(rows_of(args, token), n, out);
    if (!args.norm_weight) continue;
    const RowStatistics statistics =
        row_statistics(out, n, total / static_cast<float>(n), args.eps);
    for_each_vector(n, row_writer<Plain>(out, statistics, {args.norm_weight, args.norm_bias}, out));
  }
}

}  // namespace

void embedding(const EmbeddingArgs<float>& args) {
  static constexpr decltype(&embed<1>) kEmbed[kMaxTables] = {embed<1>, embed<2>, embed<3>,
                                                             embed<4>};
  const auto run = kEmbed[args.num_tables - 1];
  for_each_row_range(args.tokens, (args.num_tables + 1) * kFloat * args.hidden,
                     [&](std::int64_t begin, std::int64_t end) { run(args, begin, end); });
}

}  // namespace softgate::cpu::SOFTGATE_ISA

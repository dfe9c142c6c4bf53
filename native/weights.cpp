// Packing: once, in parallel, from read-only tensors into one streaming arena.
#include "weights.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace forerun {
namespace {

float half_to_float(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  float magnitude;
  if (exponent == 31)
    magnitude = mantissa ? NAN : INFINITY;
  else if (exponent == 0)
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  else
    magnitude = std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return h >> 15 ? -magnitude : magnitude;
}

template <typename Value>
void read_row(const Row& row, int64_t columns, Value* out) {
  constexpr SourceType kOwn = sizeof(Value) == 2 ? SourceType::kBf16 : SourceType::kF32;
  if (!row.source) {
    std::memset(out, 0, static_cast<size_t>(columns) * sizeof(Value));
    return;
  }
  const Source& source = *row.source;
  if (source.type == kOwn) {
    std::memcpy(out, static_cast<const Value*>(source.data) + row.index * columns,
                static_cast<size_t>(columns) * sizeof(Value));
    return;
  }
  for (int64_t i = 0; i < columns; ++i) out[i] = from_float<Value>(source.at(row.index, i));
}

// 32 output rows -> one panel.
void pack_panel(const Row* rows, int64_t inputs, int64_t num_blocks, PairOrder order,
                uint16_t* staging, uint8_t* panel) {
  const int64_t padded = num_blocks * kBlock;
  for (int column = 0; column < kPanelColumns; ++column) {
    uint16_t* line = staging + column * padded;
    read_row(rows[column], inputs, line);
    for (int64_t i = inputs; i < padded; ++i) line[i] = 0;
  }
  // What each line of a K block holds: 16 columns of a tile, and of each two inputs.
  struct Line {
    int column, low, high;
  };
  Line lines[kBlock];
  for (int column = 0; column < kPanelColumns; column += kTileColumns)
    for (int i = 0; i < kBlock; ++i) {
      const int64_t offset = panel_offset(i, column, order);
      Line& line = lines[offset / kBlock];
      line.column = column;
      (offset & 1 ? line.high : line.low) = i;
    }
  uint32_t* out = reinterpret_cast<uint32_t*>(panel);
  for (int64_t block = 0; block < num_blocks; ++block)
    for (const Line& line : lines)
      for (int lane = 0; lane < kTileColumns; ++lane, ++out) {
        const uint16_t* in = staging + (line.column + lane) * padded + block * kBlock;
        *out = static_cast<uint32_t>(in[line.high]) << 16 | in[line.low];
      }
}

// The same of fp32, into memory that is zero, as padding is.
void pack_panel(const Row* rows, int64_t inputs, int64_t /*num_blocks*/, PairOrder order,
                float* staging, uint8_t* panel) {
  float* out = reinterpret_cast<float*>(panel);
  for (int column = 0; column < kPanelColumns; ++column) {
    read_row(rows[column], inputs, staging);
    for (int64_t i = 0; i < inputs; ++i) out[panel_offset(i, column, order)] = staging[i];
  }
}

std::vector<Row> all_rows(const Source& source) {
  std::vector<Row> rows;
  for (int64_t i = 0; i < source.rows; ++i) rows.push_back({&source, i});
  return rows;
}

// Queries, key and value of each K/V head together, padded to whole panels.
std::vector<Row> by_family(const Shape& shape, const Source& q, const Source& k, const Source& v) {
  std::vector<Row> rows;
  const int head_dim = shape.head_dim, queries = shape.group() * head_dim;
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    for (int i = 0; i < queries; ++i) rows.push_back({&q, head * queries + i});
    for (const Source* source : {&k, &v})
      for (int i = 0; i < head_dim; ++i) rows.push_back({source, head * head_dim + i});
    rows.resize(static_cast<size_t>((head + 1) * shape.family_width()));
  }
  return rows;
}

// Gate and up columns alternate tile by tile, so that one panel yields 16 activations whole.
std::vector<Row> interleaved(const Source& gate, const Source& up) {
  std::vector<Row> rows;
  for (int64_t first = 0; first < gate.rows; first += kTileColumns)
    for (const Source* source : {&gate, &up})
      for (int64_t i = first; i < first + kTileColumns; ++i)
        rows.push_back(i < source->rows ? Row{source, i} : Row{});
  return rows;
}

// K blocks of all panels of a matrix.
int64_t matrix_blocks(int64_t outputs, int64_t inputs) {
  return ceil_div(outputs, kPanelColumns) * ceil_div(inputs, kBlock);
}

int64_t layer_blocks(const Shape& s) {
  return matrix_blocks(s.qkv_width(), s.input_width()) + matrix_blocks(s.hidden, s.query_width()) +
         matrix_blocks(2 * ceil_div(s.ffn, kTileColumns) * kTileColumns, s.hidden) +
         matrix_blocks(s.hidden, s.ffn);
}

// Of everything but the layers.
int64_t outer_blocks(const Shape& s) {
  const int head_vocab = s.head_rows > 0 ? s.head_rows : s.vocab;
  return matrix_blocks(s.head_rows, s.hidden) + matrix_blocks(s.hidden, s.feature_width) +
         matrix_blocks(head_vocab, s.markov_rank) +
         matrix_blocks(s.markov_outputs(), s.markov_inputs());
}

}  // namespace

float Source::at(int64_t row, int64_t column) const {
  const int64_t i = row * columns + column;
  switch (type) {
    case SourceType::kBf16:
      return bf16_to_float(static_cast<const uint16_t*>(data)[i]);
    case SourceType::kF16:
      return half_to_float(static_cast<const uint16_t*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

int64_t Weights::num_bytes() const {
  return static_cast<int64_t>(panels.size() + embedding.size() + markov_in.size());
}

int64_t Weights::streamed_bytes() const {
  const int64_t lent = shape.head_rows > 0 ? 0 : any_head().num_bytes();
  return static_cast<int64_t>(panels.size()) + lent;
}

Packing::Packing(Shape shape, std::shared_ptr<Lane> lane, std::shared_ptr<const Weights> lender)
    : lane_(std::move(lane)), weights_(std::make_shared<Weights>(lane_->kernels().layout)) {
  const Layout layout = lane_->kernels().layout;
  if (lender && (lender->shape.hidden != shape.hidden || lender->shape.vocab != shape.vocab ||
                 lender->layout != layout || !lender->head.data))
    throw std::invalid_argument("a table can be borrowed between equal widths and paths");
  Weights& made = *weights_;
  const int64_t num_blocks = layer_blocks(shape) * shape.num_layers + outer_blocks(shape);
  made.panels = Arena(static_cast<size_t>(num_blocks * layout.block_bytes()));
  made.layers.resize(static_cast<size_t>(shape.num_layers));
  made.shape = std::move(shape);
  made.lender = std::move(lender);
}

Weights& Packing::open() {
  if (!weights_) throw std::invalid_argument("these weights are packed already: begin others");
  return *weights_;
}

std::shared_ptr<const Weights> Packing::finish() {
  if (num_used_ < static_cast<int64_t>(open().panels.size()))
    throw std::invalid_argument("fewer weights than the shape announces");
  return std::move(weights_);
}

void Packing::pack(Role role, int layer, const std::vector<Source>& sources) {
  Weights& made = open();
  const Source& first = sources.at(0);
  if (role == Role::kEmbedding || role == Role::kMarkovIn) {
    (role == Role::kEmbedding ? made.embedding : made.markov_in) = table_of(first);
    return;
  }
  Matrix* const outer = role == Role::kHead     ? &made.head
                        : role == Role::kFusion ? &made.fusion
                        : role == Role::kMarkov ? &made.markov
                        : role == Role::kMix    ? &made.mix
                                                : nullptr;
  if (outer) {
    *outer = pack_matrix(all_rows(first), first.columns);
    return;
  }
  Layer& target = made.layers.at(static_cast<size_t>(layer));
  if (role == Role::kQkv)
    target.qkv =
        pack_matrix(by_family(made.shape, first, sources.at(1), sources.at(2)), first.columns);
  else if (role == Role::kGateUp)
    target.gate_up = pack_matrix(interleaved(first, sources.at(1)), first.columns);
  else
    (role == Role::kOutput ? target.output : target.down) =
        pack_matrix(all_rows(first), first.columns);
}

// Rows as they are, for looking up.
Arena Packing::table_of(const Source& source) {
  const int value_bytes = open().layout.value_bytes;
  Arena table(static_cast<size_t>(source.rows * source.columns * value_bytes));
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    with_values(value_bytes, [&](auto value) {
      lane_->share(worker, 0, source.rows, [&](int64_t i) {
        read_row({&source, i}, source.columns, table.as<decltype(value)>() + i * source.columns);
      });
    });
  });
  return table;
}

void Packing::set_token_map(std::vector<int32_t> tokens) { open().token_map = std::move(tokens); }

void Packing::set_sight(int layer, bool sees_ahead, int window) {
  Layer& target = open().layers.at(static_cast<size_t>(layer));
  target.sees_ahead = sees_ahead;
  target.window = window;
}

// The next stretch of the weight arena, filled by all workers.
Matrix Packing::pack_matrix(std::vector<Row> rows, int64_t inputs) {
  while (rows.size() % kPanelColumns) rows.push_back({});
  Matrix matrix;
  matrix.num_blocks = ceil_div(inputs, kBlock);
  matrix.num_panels = static_cast<int64_t>(rows.size()) / kPanelColumns;
  const Layout layout = open().layout;
  matrix.block_bytes = layout.block_bytes();
  const Arena& panels = open().panels;
  if (num_used_ + matrix.num_bytes() > static_cast<int64_t>(panels.size()))
    throw std::invalid_argument("more weights than the shape announces");
  matrix.data = panels.data() + num_used_;
  num_used_ += matrix.num_bytes();
  lane_->reset_phases(1);
  lane_->run([&](int worker) {
    with_values(layout.value_bytes, [&](auto value) {
      std::vector<decltype(value)> staging(
          static_cast<size_t>(kPanelColumns * matrix.num_blocks * kBlock));
      lane_->share(worker, 0, matrix.num_panels, [&](int64_t p) {
        pack_panel(&rows[static_cast<size_t>(p * kPanelColumns)], inputs, matrix.num_blocks,
                   layout.order, staging.data(),
                   matrix.data + p * matrix.num_blocks * matrix.block_bytes);
      });
    });
  });
  return matrix;
}

// `values` of kQkvBias are all queries', then all keys', then all values'.
void Packing::set_vector(Vector role, int layer, std::vector<float> values) {
  Weights& made = open();
  if (role == Vector::kFinalNorm) {
    made.final_norm = std::move(values);
    return;
  }
  if (role == Vector::kMixBias) {
    values.resize(static_cast<size_t>(made.mix.num_panels * kPanelColumns));
    made.mix_bias = std::move(values);
    return;
  }
  if (role == Vector::kFeatureNorm && made.shape.reads == Reads::kContext) {
    made.fused_norm = std::move(values);
    return;
  }
  Layer& target = made.layers.at(static_cast<size_t>(layer));
  switch (role) {
    case Vector::kAttentionNorm:
      target.attention_norm = std::move(values);
      break;
    case Vector::kFeatureNorm:
      target.feature_norm = std::move(values);
      break;
    case Vector::kFfnNorm:
      target.ffn_norm = std::move(values);
      break;
    case Vector::kQkvBias: {
      const Shape& s = made.shape;
      const int64_t q = s.query_width(), kv = s.num_kv_heads * s.head_dim;
      const auto part = [&](int64_t at, int64_t rows) {
        return Source{&values.at(static_cast<size_t>(at)), SourceType::kF32, rows, 1};
      };
      target.qkv_bias.clear();
      const Source queries = part(0, q), keys = part(q, kv), rest = part(q + kv, kv);
      for (const Row& row : by_family(s, queries, keys, rest))
        target.qkv_bias.push_back(row.source ? row.source->at(row.index, 0) : 0.0f);
      break;
    }
    case Vector::kQueryNorm:
      target.query_norm = std::move(values);
      break;
    default:
      target.key_norm = std::move(values);
  }
}

}  // namespace forerun

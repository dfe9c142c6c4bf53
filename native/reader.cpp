#include "reader.h"

#include <algorithm>
#include <cmath>

namespace forerun {

void PassRows::begin_row(int row, int known) {
  starts.push_back(num_nodes());
  committed.push_back(known);
  const int32_t* table = plan.block_table + static_cast<int64_t>(row) * plan.table_width;
  tables.insert(tables.end(), table, table + plan.table_width);
}

Batch PassRows::batch() {
  starts.push_back(num_nodes());
  return {static_cast<int>(committed.size()),
          num_nodes(),
          plan.table_width,
          static_cast<int>(logit_nodes.size()),
          0,
          tokens.data(),
          parents.data(),
          starts.data(),
          committed.data(),
          tables.data(),
          logit_nodes.data(),
          nullptr};
}

namespace {

// The nodes wanted, as a pass that grows: each stands below an earlier one or the row's text, which
// ends before position `known(row) - behind`.
PassRows grown_rows(const GrowthPlan& plan, std::vector<Wanted>& wanted, int num_grown,
                    int behind) {
  PassRows pass(plan);
  int row = -1;
  for (Wanted& one : wanted) {
    if (one.row != row) pass.begin_row(row = one.row, plan.known(one.row) - behind);
    one.kv = num_grown + pass.num_nodes();
    pass.logit_nodes.push_back(pass.num_nodes());
    pass.add(one.token, one.parent_kv);
  }
  return pass;
}

// A head's logits to the places of the target's tokens; what it does not know has no chance.
void spread_row(const float* own, const std::vector<int32_t>& token_map, size_t width, float* out) {
  std::fill_n(out, width, -INFINITY);
  for (size_t t = 0; t < token_map.size(); ++t) out[static_cast<size_t>(token_map[t])] = own[t];
}

int num_features(const GrowthPlan& plan, int row) {
  return plan.catch_up_starts[row + 1] - plan.catch_up_starts[row] - 1;
}

// What a block drafter reads of a row's features: chains without tokens.
int add_context(const GrowthPlan& plan, PassRows& pass) {
  int num_rows = 0;
  for (int b = 0; b < plan.num_rows; ++b) {
    const int count = num_features(plan, b);
    if (count == 0) continue;
    pass.begin_row(b, plan.committed[b]);
    for (int i = 0; i < count; ++i) pass.add(0, i - 1);
    ++num_rows;
  }
  return num_rows;
}

// What EAGLE-3 reads of a row: each feature with the token behind it.
void add_pairs(const GrowthPlan& plan, PassRows& pass, bool asks) {
  for (int b = 0; b < plan.num_rows; ++b) {
    if (num_features(plan, b) == 0) continue;
    pass.begin_row(b, plan.committed[b]);
    for (int i = 0; i < num_features(plan, b); ++i)
      pass.add(plan.catch_up[plan.catch_up_starts[b] + i + 1], i - 1);
    if (asks) pass.logit_nodes.push_back(pass.num_nodes() - 1);
  }
}

}  // namespace

// The tokens a row has not read, as chains: their K/V goes to its place at once.
void TextReader::read_text(const GrowthPlan& plan, int capacity) {
  PassRows pass(plan);
  for (int b = 0; b < plan.num_rows; ++b) {
    pass.begin_row(b, plan.committed[b]);
    for (int i = plan.catch_up_starts[b]; i < plan.catch_up_starts[b + 1]; ++i)
      pass.add(plan.catch_up[i], i - plan.catch_up_starts[b] - 1);
    pass.logit_nodes.push_back(pass.num_nodes() - 1);
  }
  Batch batch = pass.batch();
  batch.num_layers = plan.num_layers;
  model_.forward(batch);
  model_.begin_growth(capacity);
  num_passes_ = 1;
}

void TextReader::read(const GrowthPlan& plan, std::vector<Wanted>& wanted) {
  PassRows pass = grown_rows(plan, wanted, model_.num_grown(), 0);
  Batch batch = pass.batch();
  batch.grows = true;
  batch.num_layers = plan.num_layers;
  model_.forward(batch);
  ++num_passes_;
  if (notes_) note(wanted.size());
}

// Keeps the logits of the last pass, the last nodes that grew.
void TextReader::note(size_t num_rows) {
  constexpr size_t kMostBytes = 32 << 20;
  const size_t width = static_cast<size_t>(vocab());
  if ((all_read_.values.size() + num_rows * width) * sizeof(float) > kMostBytes) notes_ = false;
  if (!notes_) return;
  for (size_t i = 0; i < num_rows; ++i)
    all_read_.values.insert(all_read_.values.end(), logits(i), logits(i) + width);
  all_read_.num_nodes += static_cast<int>(num_rows);
}

// What another forecast read of a row's draft grows here once more; its pending token is text.
void TextReader::adopt(const ForecastPlan& plan, int row, std::vector<int>& kv) {
  const GrowthPlan& below = plan.below;
  const int first = plan.starts[row], pending = below.known(row) - 1;
  std::vector<int> positions;
  for (int n = first; n < plan.starts[row + 1]; ++n) {
    const int parent = plan.parents[n];
    positions.push_back(parent < 0 ? pending : positions[static_cast<size_t>(parent)] + 1);
    if (!plan.is_carried(n)) continue;
    kv[static_cast<size_t>(n)] = model_.num_grown();
    model_.adopt(
        &plan.held[row]->kv[static_cast<size_t>(plan.carried[n] * model_.bytes_per_node())],
        positions.back(), parent < 0 ? -1 : kv[static_cast<size_t>(first + parent)]);
  }
  const int own = kv[static_cast<size_t>(first)];
  model_.settle(below.block_table + static_cast<int64_t>(row) * below.table_width, pending, own,
                own);
}

// The unread text of a row, its pending token last, as nodes that grow.
void TextReader::add_text(const ForecastPlan& plan, int row, PassRows& pass, std::vector<int>& kv,
                          std::vector<int>& read) {
  const GrowthPlan& below = plan.below;
  const int begin = below.catch_up_starts[row], end = below.catch_up_starts[row + 1];
  const int before = model_.num_grown();
  pass.begin_row(row, below.committed[row]);
  for (int i = begin; i < end; ++i)
    pass.add(below.catch_up[i], i == begin ? -1 : before + pass.num_nodes() - 1);
  kv[static_cast<size_t>(plan.starts[row])] = before + pass.num_nodes() - 1;
  pass.logit_nodes.push_back(pass.num_nodes() - 1);
  read.push_back(plan.starts[row]);
}

// What is not carried of a row's draft, below its text or what is.
void TextReader::add_draft(const ForecastPlan& plan, int row, PassRows& pass, std::vector<int>& kv,
                           std::vector<int>& read) {
  const int first = plan.starts[row];
  const bool is_held = plan.is_held(row);
  bool has_begun = !is_held;
  for (int n = first + 1; n < plan.starts[row + 1]; ++n) {
    if (plan.is_carried(n)) continue;
    if (!has_begun) pass.begin_row(row, plan.below.known(row));
    has_begun = true;
    const int parent = plan.parents[n];
    const bool is_below_text = is_held && parent == 0;
    kv[static_cast<size_t>(n)] = model_.num_grown() + pass.num_nodes();
    pass.logit_nodes.push_back(pass.num_nodes());
    pass.add(plan.tokens[n], is_below_text ? -1 : kv[static_cast<size_t>(first + parent)]);
    read.push_back(n);
  }
}

// Texts and drafts as nodes that grow, then the texts' K/V goes to its place.
bool TextReader::read_drafts(const ForecastPlan& plan, int capacity, std::vector<int>& kv,
                             std::vector<int>& read) {
  const GrowthPlan& below = plan.below;
  kv.assign(static_cast<size_t>(plan.num_nodes()), -1);
  model_.begin_growth(capacity + below.catch_up_starts[below.num_rows]);
  for (int b = 0; b < below.num_rows; ++b)
    if (plan.is_held(b)) adopt(plan, b, kv);
  PassRows pass(below);
  for (int b = 0; b < below.num_rows; ++b) {
    if (!plan.is_held(b)) add_text(plan, b, pass, kv, read);
    add_draft(plan, b, pass, kv, read);
  }
  num_passes_ = read.empty() ? 0 : 1;
  notes_ = !plan.is_given();
  all_read_ = {model_.num_grown() + pass.num_nodes(), 0, {}};
  if (read.empty()) return true;
  Batch batch = pass.batch();
  batch.grows = true;
  batch.num_layers = below.num_layers;
  model_.forward(batch);
  for (int b = 0; b < below.num_rows; ++b) {
    if (plan.is_held(b)) continue;
    const int32_t* table = below.block_table + static_cast<int64_t>(b) * below.table_width;
    const int pending = kv[static_cast<size_t>(plan.starts[b])];
    const int count = below.catch_up_starts[b + 1] - below.catch_up_starts[b];
    model_.settle(table, below.committed[b], pending - count + 1, pending);
  }
  return true;
}

void BlockReader::read_text(const GrowthPlan& plan, int capacity) {
  constexpr int kFreeSlots = 8;  // rows that a pass takes in the time of one
  PassRows pass(plan);
  const int num_context_rows = add_context(plan, pass), num_context = pass.num_nodes();
  const int unheard = model_.shape().is_shifted ? 0 : 1;  // slots that say nothing
  std::vector<Wanted> pending;
  first_slots_.clear();
  num_levels_.clear();
  silence_.assign(at(std::max(model_.shape().vocab, static_cast<int>(model_.logits_stride()))),
                  std::nanf(""));
  for (int b = 0; b < plan.num_rows; ++b) {
    const int levels =
        plan.budgets[b] < 1 ? 0 : std::clamp(plan.depths[b], 0, model_.shape().max_drafted());
    num_levels_.push_back(levels);
    first_slots_.push_back(static_cast<int>(pass.logit_nodes.size()));
    pending.push_back({b, plan.catch_up[plan.catch_up_starts[b + 1] - 1], 0, -1, -1});
    if (levels == 0) continue;
    pass.begin_row(b, plan.known(b) - 1);
    const int room = std::min(plan.table_width * kBlock, model_.max_context());
    const int free = std::min({model_.shape().block_len, kFreeSlots, room - (plan.known(b) - 1)});
    const int fed = std::max(free, levels + unheard);
    for (int i = 0; i < levels; ++i) pass.logit_nodes.push_back(pass.num_nodes() + unheard + i);
    for (int i = 0; i < fed; ++i)
      pass.add(i == 0 ? pending.back().token : model_.shape().mask, i - 1);
  }
  Batch batch = pass.batch();
  batch.features = features_;
  batch.num_context = num_context;
  batch.num_context_rows = num_context_rows;
  if (batch.num_nodes > 0) model_.forward(batch);
  slot_nodes_ = pass.logit_nodes;
  num_rows_ = plan.num_rows;
  num_wanted_ = 0;
  heard_.assign(at(num_rows_ + capacity + 1) * at(model_.shape().markov_rank), 0.0f);
  none_ = num_rows_ + capacity;
  say(pending);
}

void BlockReader::read(const GrowthPlan&, std::vector<Wanted>& wanted) {
  for (Wanted& one : wanted) one.kv = num_wanted_++;
  say(wanted);
}

// The slots of nodes, and to each what the tokens before it add.
void BlockReader::say(const std::vector<Wanted>& nodes) {
  const size_t stride = static_cast<size_t>(model_.logits_stride());
  std::vector<Heard> slots;
  rows_.assign(nodes.size(), silence_.data());
  sums_.resize(nodes.size() * stride);
  for (size_t i = 0; i < nodes.size(); ++i) {
    const Wanted& one = nodes[i];
    if (is_silent(one.row, one.depth)) continue;
    const int place = first_slots_[at(one.row)] + one.depth;
    rows_[i] = model_.logits()->data() + at(place) * stride;
    if (model_.shape().markov_rank == 0) continue;
    const bool is_pending = one.depth == 0;
    const int above = is_pending ? none_ : one.parent_kv < 0 ? one.row : num_rows_ + one.parent_kv;
    float* below = heard(is_pending ? one.row : num_rows_ + one.kv);
    slots.push_back({one.token, slot_nodes_[at(place)], rows_[i], heard(above), below});
    rows_[i] = &sums_[(slots.size() - 1) * stride];
  }
  if (!slots.empty()) model_.add_markov(slots, sums_.data());
  if (!model_.weights().token_map.empty()) spread();
}

void BlockReader::spread() {
  const size_t width = static_cast<size_t>(vocab());
  spread_.resize(rows_.size() * width);
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (rows_[i] == silence_.data()) continue;
    spread_row(rows_[i], model_.weights().token_map, width, &spread_[i * width]);
    rows_[i] = &spread_[i * width];
  }
}

void EagleReader::read_text(const GrowthPlan& plan, int capacity) {
  PassRows pass(plan);
  add_pairs(plan, pass, true);
  Batch batch = pass.batch();
  batch.features = features_;
  model_.forward(batch);
  const size_t hidden = static_cast<size_t>(model_.shape().hidden);
  roots_.resize(hidden * static_cast<size_t>(plan.num_rows));
  for (size_t b = 0; b < pass.logit_nodes.size(); ++b)
    std::copy_n(model_.output(pass.logit_nodes[b]), hidden, &roots_[b * hidden]);
  outputs_.resize(hidden * static_cast<size_t>(capacity));
  model_.begin_growth(capacity);
  num_passes_ = 1;
  spread(pass.logit_nodes.size());
}

void EagleReader::read(const GrowthPlan& plan, std::vector<Wanted>& wanted) {
  const size_t hidden = static_cast<size_t>(model_.shape().hidden);
  PassRows pass = grown_rows(plan, wanted, model_.num_grown(), 1);
  std::vector<float> above(wanted.size() * hidden);
  for (size_t i = 0; i < wanted.size(); ++i) {
    const Wanted& one = wanted[i];
    const float* from = one.parent_kv < 0 ? &roots_[static_cast<size_t>(one.row) * hidden]
                                          : &outputs_[static_cast<size_t>(one.parent_kv) * hidden];
    std::copy_n(from, hidden, &above[i * hidden]);
  }
  Batch batch = pass.batch();
  batch.grows = true;
  batch.features = above.data();
  model_.forward(batch);
  for (size_t i = 0; i < wanted.size(); ++i)
    std::copy_n(model_.output(static_cast<int>(i)), hidden,
                &outputs_[static_cast<size_t>(wanted[i].kv) * hidden]);
  ++num_passes_;
  spread(wanted.size());
}

void EagleReader::spread(size_t num_rows) {
  if (model_.weights().token_map.empty()) return;
  const size_t width = static_cast<size_t>(vocab());
  spread_.resize(num_rows * width);
  for (size_t r = 0; r < num_rows; ++r) {
    const float* own = model_.logits()->data() + static_cast<int64_t>(r) * model_.logits_stride();
    spread_row(own, model_.weights().token_map, width, &spread_[r * width]);
  }
}

const float* EagleReader::logits(size_t i) const {
  if (!model_.weights().token_map.empty()) return &spread_[i * static_cast<size_t>(vocab())];
  return model_.logits()->data() + static_cast<int64_t>(i) * model_.logits_stride();
}

void absorb(Model& model, const GrowthPlan& plan, const float* features) {
  PassRows pass(plan);
  const bool is_block = model.shape().reads == Reads::kContext;
  const int num_context_rows = is_block ? add_context(plan, pass) : 0;
  if (!is_block) add_pairs(plan, pass, false);
  Batch batch = pass.batch();
  batch.features = features;
  batch.num_context_rows = num_context_rows;
  batch.num_context = is_block ? batch.num_nodes : 0;
  if (batch.num_nodes > 0) model.forward(batch);
}

}  // namespace forerun

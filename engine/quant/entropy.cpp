#include "engine/quant/entropy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "engine/quant/bit_stream.h"
#include "engine/quant/bits.h"
#include "engine/quant/entropy_model.h"
#include "engine/quant/rans.h"

namespace nibblenet {
namespace {

// Width, precision, classes, whether codes are transposed; runs per chunk as a 32-bit number.
constexpr int64_t fixed_bytes = 8;
constexpr int64_t length_bytes = 4;  // of a chunk, in the chunk table
// Chunks of about this size lose almost nothing to their states, and there are enough for all
// cores.
constexpr double wanted_chunk_bytes = 1 << 16;
// With the states' 64 bytes this bounds what a stream can decode to.
constexpr int64_t max_decoded_chunk = int64_t{1} << 18;

/// A run's place among the symbols and bytes of its tensor.
struct Run {
  int64_t channel = 0;
  int64_t first = 0;    ///< symbol of the channel
  int64_t symbols = 0;  ///< in this run
  int64_t bits = 0;     ///< of codes: the last symbol of a channel may stand for fewer than its width
};

Run run_at(const SymbolLayout& layout, int64_t index) {
  Run run{.channel = index / layout.runs(), .first = index % layout.runs() * run_symbols};
  run.symbols = std::min(run_symbols, layout.symbols() - run.first);
  run.bits = std::min(run.symbols * layout.width, layout.channel_bits() - run.first * layout.width);
  return run;
}

int64_t max_runs_per_chunk(const SymbolLayout& layout) {
  const int64_t run_bytes = layout.runs() > 1 ? run_symbols * layout.width / 8 : layout.codes.stride();
  // At most the existing runs: then each count gives a different stream, and a flipped bit in it is
  // detected.
  return std::clamp<int64_t>(max_decoded_chunk / std::max<int64_t>(1, run_bytes), 1,
                             std::max<int64_t>(1, layout.all_runs()));
}

int64_t chunks_of(const SymbolLayout& layout, int64_t runs_per_chunk) {
  return (layout.all_runs() + runs_per_chunk - 1) / runs_per_chunk;
}

void append_u32(std::vector<uint8_t>& bytes, int64_t value) {
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(value >> shift));
}

int64_t read_u32(const uint8_t* bytes) {
  uint32_t value = 0;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

std::vector<uint8_t> encode_chunk(std::span<const uint8_t> codes, const SymbolLayout& layout, const EntropyModel& model,
                                  std::span<const RansEncoderModel> tables, int64_t first_run, int64_t end_run) {
  RansEncoder encoder;
  std::vector<uint8_t> symbols;
  for (int64_t index = end_run - 1; index >= first_run; --index) {
    const Run run = run_at(layout, index);
    symbols.resize(static_cast<size_t>(run.symbols));
    read_symbols(codes.data() + run.channel * layout.codes.stride(), layout, run.first, symbols);
    const RansEncoderModel& table = tables[model.class_of_channel[run.channel]];
    for (int64_t at = run.symbols - 1; at >= 0; --at)
      encoder.put(static_cast<int>(at % rans_lanes), symbols[static_cast<size_t>(at)], table);
  }
  return encoder.finish();
}

std::vector<uint8_t> encode_stream(std::span<const uint8_t> codes, const CodeLayout& layout, const EntropyModel& model,
                                   bool is_transposed) {
  const SymbolLayout symbols{layout, model.width};
  const double run_bytes = model.data_bytes / static_cast<double>(std::max<int64_t>(1, symbols.all_runs()));
  const int64_t runs_per_chunk =
      std::clamp<int64_t>(std::llround(wanted_chunk_bytes / std::max(run_bytes, 1.0)), 1, max_runs_per_chunk(symbols));

  std::vector<RansEncoderModel> tables;
  for (const auto& frequencies : model.frequencies) tables.emplace_back(frequencies, model.precision);
  std::vector<std::vector<uint8_t>> chunks(static_cast<size_t>(chunks_of(symbols, runs_per_chunk)));
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < static_cast<int64_t>(chunks.size()); ++i)
    chunks[i] = encode_chunk(codes, symbols, model, tables, i * runs_per_chunk,
                             std::min(symbols.all_runs(), (i + 1) * runs_per_chunk));

  const auto classes = static_cast<int>(model.frequencies.size());
  std::vector<uint8_t> stream = {static_cast<uint8_t>(model.width), static_cast<uint8_t>(model.precision),
                                 static_cast<uint8_t>(classes), is_transposed ? uint8_t{1} : uint8_t{0}};
  append_u32(stream, runs_per_chunk);
  BitWriter bits(stream);
  for (const uint8_t id : model.class_of_channel) bits.put(id, class_bits(classes));
  for (const auto& frequencies : model.frequencies)
    for (const uint32_t frequency : frequencies) bits.put_gamma(frequency);
  for (const auto& chunk : chunks) append_u32(stream, static_cast<int64_t>(chunk.size()));
  for (const auto& chunk : chunks) stream.insert(stream.end(), chunk.begin(), chunk.end());
  return stream;
}

/// A stream with all lengths checked against the layout and the available bytes.
struct ParsedStream {
  SymbolLayout layout;
  int64_t runs_per_chunk = 0;
  std::vector<uint8_t> class_of_channel;
  std::vector<RansDecoderModel> tables;  ///< by class
  std::vector<std::span<const uint8_t>> chunks;
};

void check_layout(const CodeLayout& layout, int64_t limit, std::string_view name) {
  if (layout.bits < 1 || layout.bits > 8 || layout.channels < 0 || layout.elements < 0)
    fail<FormatError>("{}: no codes of {} bits for {} x {} weights", name, layout.bits, layout.channels,
                      layout.elements);
  // Check each factor first, so that the product cannot overflow.
  if (layout.elements / 8 > limit || layout.channels > limit || layout.bytes() > limit)
    fail<FormatError>("{}: {} x {} weights decode to more than the {} bytes left of the {} that a file may", name,
                      layout.channels, layout.elements, limit, max_decoded_bytes);
}

std::vector<uint32_t> read_frequencies(BitReader& bits, const SymbolLayout& layout, int precision,
                                       std::string_view name) {
  std::vector<uint32_t> frequencies(size_t{1} << layout.width);
  uint64_t sum = 0;
  for (uint32_t& frequency : frequencies) sum += frequency = bits.take_gamma(max_rans_precision);
  if (bits.ended()) fail<FormatError>("{}: the frequencies are cut off", name);
  if (sum != uint64_t{1} << precision)
    fail<FormatError>("{}: frequencies sum to {}, expected {}", name, sum, uint64_t{1} << precision);
  return frequencies;
}

ParsedStream parse_stream(std::span<const uint8_t> stream, const CodeLayout& codes, std::string_view name) {
  const auto bytes = static_cast<int64_t>(stream.size());
  if (bytes < fixed_bytes) fail<FormatError>("{}: {} bytes are too short for a compressed tensor", name, bytes);
  const int width = stream[0], precision = stream[1], classes = stream[2];
  if (width < codes.bits || width > 8 || width % codes.bits != 0)
    fail<FormatError>("{}: symbols of {} bits do not hold codes of {} bits", name, width, codes.bits);
  if (precision < min_rans_precision || precision > max_rans_precision)
    fail<FormatError>("{}: a frequency precision of {} bits, expected {} to {}", name, precision, min_rans_precision,
                      max_rans_precision);
  if (stream[3] > 1) fail<FormatError>("{}: {} names no order of codes, expected 0 or 1", name, stream[3]);
  if (classes < 1 || classes > max_channel_classes)
    fail<FormatError>("{}: {} classes of channels, expected 1 to {}", name, classes, max_channel_classes);

  ParsedStream parsed{.layout = {codes, width}, .runs_per_chunk = read_u32(stream.data() + 4)};
  if (parsed.runs_per_chunk < 1 || parsed.runs_per_chunk > max_runs_per_chunk(parsed.layout))
    fail<FormatError>("{}: {} runs in a chunk, expected 1 to {}", name, parsed.runs_per_chunk,
                      max_runs_per_chunk(parsed.layout));
  const int64_t chunks = chunks_of(parsed.layout, parsed.runs_per_chunk);
  if (chunks * (length_bytes + rans_state_bytes) > bytes - fixed_bytes)
    fail<FormatError>("{}: {} bytes are too few for {} chunks: truncated?", name, bytes, chunks);

  BitReader bits(stream.subspan(fixed_bytes));
  parsed.class_of_channel.resize(static_cast<size_t>(codes.channels));
  if (const int id_bits = class_bits(classes); id_bits > 0)
    for (uint8_t& id : parsed.class_of_channel) {
      id = static_cast<uint8_t>(bits.take(id_bits));
      if (bits.ended() || id >= classes) fail<FormatError>("{}: the classes of the channels are damaged", name);
    }
  for (int i = 0; i < classes; ++i)
    parsed.tables.emplace_back(read_frequencies(bits, parsed.layout, precision, name), precision);
  int64_t at = 0;
  if (!bits.finish(at)) fail<FormatError>("{}: the bits behind the frequencies are not zero", name);
  at += fixed_bytes;

  int64_t begin = at + chunks * length_bytes;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t length = begin <= bytes ? read_u32(stream.data() + at + i * length_bytes) : 0;
    if (length < rans_state_bytes || length > bytes - begin)
      fail<FormatError>("{}: chunk {} of {} bytes does not fit: damaged or truncated", name, i, length);
    parsed.chunks.push_back(stream.subspan(static_cast<size_t>(begin), static_cast<size_t>(length)));
    begin += length;
  }
  if (begin != bytes) fail<FormatError>("{}: {} bytes, expected {}", name, bytes, begin);
  return parsed;
}

/// Decodes one run into its channel's bytes. Returns false if bits beyond the last code are not
/// zero.
template <int width>
bool decode_run(RansDecoder& decoder, const RansDecoderModel& table, const Run& run, uint8_t* out) {
  const int64_t blocks = run.bits / (rans_lanes * width);
  decoder.take_blocks<width>(table, blocks, [&out](uint64_t fields) {
    std::memcpy(out, &fields, width);  // eight symbols are `width` whole bytes
    out += width;
  });
  std::array<uint8_t, rans_lanes> symbols{};
  const auto rest = static_cast<int>(run.symbols - blocks * rans_lanes);
  const auto rest_bits = static_cast<int>(run.bits - blocks * rans_lanes * width);  // fewer than 8 * width
  decoder.take(table, rest, symbols.data());
  uint64_t fields = 0;
  for (int lane = 0; lane < rest; ++lane) fields |= static_cast<uint64_t>(symbols[lane]) << (lane * width);
  std::memcpy(out, &fields, static_cast<size_t>((rest_bits + 7) / 8));
  return fields >> rest_bits == 0;
}

template <int width>
bool decode_chunk(const ParsedStream& stream, int64_t chunk, uint8_t* codes) {
  const SymbolLayout& layout = stream.layout;
  RansDecoder decoder(stream.chunks[static_cast<size_t>(chunk)]);
  const int64_t end = std::min(layout.all_runs(), (chunk + 1) * stream.runs_per_chunk);
  bool clean = true;
  for (int64_t index = chunk * stream.runs_per_chunk; index < end; ++index) {
    const Run run = run_at(layout, index);
    clean &= decode_run<width>(decoder, stream.tables[stream.class_of_channel[run.channel]], run,
                               codes + run.channel * layout.codes.stride() + run.first * width / 8);
  }
  return clean && decoder.complete();
}

using ChunkDecoder = bool (*)(const ParsedStream&, int64_t, uint8_t*);
constexpr ChunkDecoder chunk_decoders[] = {nullptr,         decode_chunk<1>, decode_chunk<2>,
                                           decode_chunk<3>, decode_chunk<4>, decode_chunk<5>,
                                           decode_chunk<6>, decode_chunk<7>, decode_chunk<8>};

}  // namespace

std::vector<uint8_t> encode_codes(std::span<const uint8_t> codes, const CodeLayout& layout) {
  if (layout.bits < 1 || layout.bits > 8)
    fail<ShapeError>("codes of {} bits to compress, expected 1 to 8", layout.bits);
  if (static_cast<int64_t>(codes.size()) != layout.bytes())
    fail<ShapeError>("{} bytes of codes to compress, expected {}", codes.size(), layout.bytes());
  const EntropyModel model = choose_model(codes, layout);
  if (layout.channels > 1 && layout.elements > 1 && layout.transposed().bytes() <= max_decoded_bytes) {
    // Within 1 %, prefer the order that loads without transposing.
    const std::vector<uint8_t> turned = transposed(codes, layout);
    const EntropyModel by_input = choose_model(turned, layout.transposed());
    if (by_input.bytes < 0.99 * model.bytes) return encode_stream(turned, layout.transposed(), by_input, true);
  }
  return encode_stream(codes, layout, model, false);
}

std::vector<uint8_t> decode_codes(std::span<const uint8_t> stream, const CodeLayout& layout, std::string_view name,
                                  int64_t limit) {
  check_layout(layout, limit, name);
  const bool is_transposed = stream.size() >= fixed_bytes && stream[3] == 1;
  const CodeLayout coded = is_transposed ? layout.transposed() : layout;
  check_layout(coded, max_decoded_bytes, name);
  const ParsedStream parsed = parse_stream(stream, coded, name);
  std::vector<uint8_t> codes(static_cast<size_t>(coded.bytes()));
  const ChunkDecoder decode = chunk_decoders[parsed.layout.width];
  const auto chunks = static_cast<int64_t>(parsed.chunks.size());
  std::atomic<int64_t> damaged = chunks;
#pragma omp parallel for schedule(dynamic)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    if (decode(parsed, chunk, codes.data())) continue;
    for (int64_t first = damaged; chunk < first && !damaged.compare_exchange_weak(first, chunk);) continue;
  }
  if (damaged < chunks) fail<FormatError>("{}: chunk {} of {} is damaged", name, damaged.load(), chunks);
  return is_transposed ? transposed(codes, coded) : codes;
}

std::optional<std::vector<uint8_t>> compressed_if_smaller(std::span<const uint8_t> codes, const CodeLayout& layout) {
  if (codes.empty() || layout.bytes() > max_decoded_bytes) return std::nullopt;
  std::vector<uint8_t> stream = encode_codes(codes, layout);
  if (stream.size() >= codes.size()) return std::nullopt;
  // A foreign file's codes may have bits set in their padding; a stream does not keep them.
  if (!std::ranges::equal(decode_codes(stream, layout, "what was just compressed"), codes)) return std::nullopt;
  return stream;
}

int64_t compressed_bytes(const PackedTensor& packed) {
  const auto smaller = [](const std::vector<uint8_t>& codes, const CodeLayout& layout) {
    if (codes.empty() || layout.bits > 8) return codes.size();
    const auto stream = compressed_if_smaller(codes, layout);
    return stream ? stream->size() : codes.size();
  };
  return static_cast<int64_t>(smaller(packed.codes, code_layout(packed)) +
                              smaller(packed.block_ids, block_id_layout(packed)) + packed.scales.size() +
                              packed.zero_points.size() + packed.codebook.size() * sizeof(float));
}

double code_entropy(const PackedTensor& packed) {
  if (packed.scheme.is_trellis()) return packed.scheme.bits_per_code();
  const SymbolLayout layout{code_layout(packed), packed.scheme.bits};
  std::vector<int64_t> counts(size_t{1} << layout.width);
  std::vector<uint8_t> symbols(static_cast<size_t>(layout.symbols()));
  for (int64_t channel = 0; channel < layout.codes.channels; ++channel) {
    read_symbols(packed.codes.data() + channel * layout.codes.stride(), layout, 0, symbols);
    for (const uint8_t symbol : symbols) ++counts[symbol];
  }
  const auto total = static_cast<double>(packed.shape.elements());
  double bits = 0;
  for (const int64_t count : counts)
    if (count > 0) bits += static_cast<double>(count) / total * std::log2(total / static_cast<double>(count));
  return bits;
}

}  // namespace nibblenet

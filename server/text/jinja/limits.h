// Bounds of the template engine. Each one is an error with a sentence, never a crash or a stall.
#pragma once

#include <cstdint>

namespace longhaul::jinja {

// What a template may be; published ones are below 20 KB.
constexpr int64_t kMaxTemplate_bytes = 1 << 20;
// Nodes above each other in the parsed template, in one expression or in nested blocks.
constexpr int kMaxNodeDepth = 200;
// Evaluations inside each other while rendering: macros that call macros.
constexpr int kMaxEvalDepth = 1200;
// Lists and dicts inside each other.
constexpr int kMaxNesting = 100;
// As the sandbox of transformers.
constexpr int64_t kMaxRange = 100000;

// What it costs to make an object (a loop, a namespace, ...), which lives until the rendering ends.
constexpr int64_t kObjectSteps = 8;

// What one rendering may do.
struct Limits {
  // Evaluations, entries of lists, and 64 bytes of text each count as one step. A conversation of
  // 1000 messages takes about 50 thousand, a message of 5 MB about 400 thousand.
  int64_t max_steps = 50'000'000;
  // Of the whole output and of each text on the way.
  int64_t max_output_bytes = int64_t{512} << 20;
};

}  // namespace longhaul::jinja

// StopStrings: finds stop strings in streamed text across token borders and holds back text that
// may be the start of one. One per choice.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace longhaul {

class StopStrings {
 public:
  StopStrings(std::vector<std::string> stops, bool include_in_output)
      : stops_(std::move(stops)), include_in_output_(include_in_output) {}

  struct Result {
    std::string text;  // may be shown now
    bool stopped = false;
    std::string matched;  // which stop string
  };
  // The match that is complete first wins, of several that end together the longest: decided byte
  // by byte, so the outcome does not depend on how the text was cut into tokens.
  Result Push(const std::string& text);
  // The text still held back, when generation ended for another reason.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  bool include_in_output_;
  std::string held_;
};

}  // namespace longhaul

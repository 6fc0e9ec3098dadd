// StopStrings: finds stop strings in streamed text across token borders and holds back text that may
// be the start of one. One per choice.
#pragma once

#include <string>
#include <vector>

namespace longhaul {

class StopStrings {
 public:
  StopStrings(std::vector<std::string> stops, bool include_in_output)
      : stops_(std::move(stops)), include_in_output_(include_in_output) {}

  struct Result {
    std::string text;     // may be shown now
    bool stopped = false;
    std::string matched;  // which stop string
  };
  // The earliest match in the text wins; of several that start together, the one listed first.
  Result Push(const std::string& text);
  // The text still held back, when generation ended for another reason.
  std::string Finish();

 private:
  std::vector<std::string> stops_;
  bool include_in_output_;
  std::string held_;
};

}  // namespace longhaul

// HtmlPage: the frame of a self-contained page (style for light and dark, no script, nothing loaded
// from anywhere; well-formed XML) and the pieces that its sections are made of. A page derives from
// it and appends its content. No files.
#pragma once

#include <fmt/format.h>

#include <iterator>
#include <string>
#include <utility>
#include <vector>

namespace longhaul::eval {

class HtmlPage {
 protected:
  explicit HtmlPage(const std::string& title);

  // As it is: what comes from outside is escaped by the caller.
  template <typename... Arguments>
  void Add(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Arguments>(arguments)...);
  }
  void Section(const char* title, const char* note);
  void Figure(const std::string& caption, const std::string& svg);
  // The first row is the head. What was missed (server/eval/report_tables.h) stands out.
  void Table(const std::vector<std::vector<std::string>>& rows);

  std::string Finish();  // the page; nothing may be added after it

 private:
  std::string out_;
};

}  // namespace longhaul::eval

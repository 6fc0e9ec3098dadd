#include "server/eval/html_page.h"

#include <string_view>

#include "server/escape_xml.h"
#include "server/eval/report_tables.h"

namespace longhaul::eval {
namespace {

constexpr const char* kStyle = R"(
:root { --ink: #1d2126; --soft: #5c6570; --line: #dfe3e8; --page: #ffffff; --card: #f6f7f9;
        --missed: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #9aa4af; --line: #363c44; --page: #15181c; --card: #1d2126;
          --missed: #ff8a80; }
}
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 84rem; background: var(--page);
       color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .2rem 0 .8rem; max-width: 48rem; }
.soft, p.note { color: var(--soft); }
section { max-width: 37.5rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; padding: .9rem 1rem; background: var(--card); border-radius: .6rem;
         max-width: 100%; width: fit-content; overflow-x: auto; box-sizing: border-box; }
p.scale { margin-top: .8rem; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { font-weight: 600; color: var(--soft); }
td.missed { color: var(--missed); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; margin: .8rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
svg text { fill: var(--ink); font-size: 12px; }
svg text.soft { fill: var(--soft); } svg text.small { font-size: 10px; fill: var(--soft); }
svg .grid { stroke: var(--line); }
summary { cursor: pointer; color: var(--soft); margin: .8rem 0; }
)";

bool EndsIn(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

}  // namespace

HtmlPage::HtmlPage(const std::string& title) {
  Add("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<title>{}</title>\n<style>{}</style>\n</head>\n<body>\n",
      EscapeXml(title), kStyle);
}

void HtmlPage::Section(const char* title, const char* note) {
  Add("<h2>{}</h2>\n<p class=\"note\">{}</p>\n", title, note);
}

void HtmlPage::Figure(const std::string& caption, const std::string& svg) {
  Add("<figure><figcaption>{}</figcaption>\n{}</figure>\n", EscapeXml(caption), svg);
}

void HtmlPage::Table(const std::vector<std::vector<std::string>>& rows) {
  Add("<div class=\"wide\"><table>\n");
  for (size_t r = 0; r < rows.size(); ++r) {
    const char* tag = r == 0 ? "th" : "td";
    Add("<tr>");
    for (const std::string& cell : rows[r]) {
      const bool missed = EndsIn(cell, kMissed);
      Add("<{}{}>{}</{}>", tag, missed ? " class=\"missed\"" : "", EscapeXml(cell), tag);
    }
    Add("</tr>\n");
  }
  Add("</table></div>\n");
}

std::string HtmlPage::Finish() {
  Add("</body>\n</html>\n");
  return std::move(out_);
}

}  // namespace longhaul::eval

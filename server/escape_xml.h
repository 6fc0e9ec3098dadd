// Text inside an SVG or HTML document.
#pragma once

#include <string>

namespace longhaul {

// For element content and attribute values. Control characters, which XML does not allow in any
// form, become spaces.
inline std::string EscapeXml(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
    }
  }
  return result;
}

}  // namespace longhaul

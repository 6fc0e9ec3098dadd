// A blocking HTTP client for tests that sends exactly the bytes it is given.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace longhaul {

struct HttpResponse {
  int status = 0;       // 0: the connection ended before a whole answer
  std::string headers;  // in lower case
  std::string body;     // de-chunked
};

class HttpClient {
 public:
  explicit HttpClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    const timeval timeout{10, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~HttpClient() { Close(); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  bool connected() const { return connected_; }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

  bool Send(std::string_view data) {
    while (!data.empty()) {
      const ssize_t n_bytes = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (n_bytes <= 0) return false;
      data.remove_prefix(static_cast<size_t>(n_bytes));
    }
    return true;
  }
  // What was received and not returned yet.
  const std::string& received() const { return received_; }
  // Something is there to be read now.
  bool HasData() const {
    char byte;
    return recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
  }
  // Reads until `text` was received; everything so far stays for ReadResponse.
  bool WaitFor(std::string_view text) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (received_.find(text) == std::string::npos) {
      if (!Receive() || std::chrono::steady_clock::now() > deadline) return false;
    }
    return true;
  }
  // The server closed the connection.
  bool AtEnd() {
    while (Receive()) {
    }
    return ended_;
  }

  HttpResponse ReadResponse(bool head_only = false) {
    HttpResponse response;
    if (!WaitFor("\r\n\r\n")) return response;
    const size_t header_end = received_.find("\r\n\r\n") + 4;
    response.headers = received_.substr(0, header_end);
    received_.erase(0, header_end);
    const int status = std::atoi(response.headers.c_str() + 9);
    for (char& c : response.headers) c = static_cast<char>(std::tolower(c));
    bool complete = true;
    const size_t length_at = response.headers.find("content-length: ");
    if (response.headers.find("transfer-encoding: chunked") != std::string::npos) {
      complete = ReadChunks(&response.body);
    } else if (length_at != std::string::npos && !head_only) {
      const size_t n_bytes = std::strtoul(response.headers.c_str() + length_at + 16, nullptr, 10);
      while (received_.size() < n_bytes && complete) complete = Receive();
      response.body = received_.substr(0, n_bytes);
      received_.erase(0, n_bytes);
    } else if (length_at == std::string::npos && status >= 200) {
      complete = AtEnd();
      response.body.swap(received_);
    }
    response.status = complete ? status : 0;
    return response;
  }

  HttpResponse Get(const std::string& path, const std::string& headers = "") {
    Send("GET " + path + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n");
    return ReadResponse();
  }
  HttpResponse Post(const std::string& path, const std::string& body,
                    const std::string& headers = "") {
    Send(PostText(path, body, headers));
    return ReadResponse();
  }
  static std::string PostText(const std::string& path, const std::string& body,
                              const std::string& headers = "") {
    return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n" +
           headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }

 private:
  bool Receive() {
    char buffer[16384];
    const ssize_t n_bytes = recv(fd_, buffer, sizeof buffer, 0);
    if (n_bytes == 0) ended_ = true;
    if (n_bytes <= 0) return false;
    received_.append(buffer, static_cast<size_t>(n_bytes));
    return true;
  }
  bool ReadChunks(std::string* body) {
    while (true) {
      if (!WaitFor("\r\n")) return false;
      const size_t line_end = received_.find("\r\n") + 2;
      const size_t n_bytes = std::strtoul(received_.c_str(), nullptr, 16);
      while (received_.size() < line_end + n_bytes + 2) {
        if (!Receive()) return false;
      }
      body->append(received_, line_end, n_bytes);
      received_.erase(0, line_end + n_bytes + 2);
      if (n_bytes == 0) return true;
    }
  }

  int fd_;
  bool connected_ = false;
  bool ended_ = false;
  std::string received_;
};

}  // namespace longhaul

// SHA-256 as lower-case hex, incrementally (OpenSSL behind it).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace pergola {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(const void* data, size_t bytes);
  // Length first, then the bytes, so that consecutive fields cannot run into one another.
  void UpdateField(std::string_view field);
  // 64 hex digits. Call once.
  std::string FinishHex();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pergola

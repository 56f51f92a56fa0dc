#include "base/sha256.h"

#include <openssl/evp.h>

#include <cstdint>

#include "base/check.h"

namespace pergola {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  PERGOLA_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::Update(const void* data, size_t bytes) {
  PERGOLA_CHECK(EVP_DigestUpdate(state_->context, data, bytes) == 1);
}

void Sha256::UpdateField(std::string_view field) {
  const uint64_t size = field.size();
  Update(&size, sizeof(size));
  Update(field.data(), field.size());
}

std::string Sha256::FinishHex() {
  unsigned char digest[32];
  unsigned int size = 0;
  PERGOLA_CHECK(EVP_DigestFinal_ex(state_->context, digest, &size) == 1 && size == 32);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (unsigned char byte : digest) {
    hex += kDigits[byte >> 4];
    hex += kDigits[byte & 15];
  }
  return hex;
}

}  // namespace pergola

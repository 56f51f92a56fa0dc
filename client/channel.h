// Channels to the coordinator: insecure, made for loopback and private networks.
#pragma once

#include <memory>
#include <string>

#include "grpcpp/channel.h"

namespace pergola {

// A channel to `address` ("any" becomes loopback). Redials after 0.1 to 1 s; the caller bounds how
// long.
std::shared_ptr<grpc::Channel> Dial(const std::string& address);

}  // namespace pergola

#include "client/admin_client.h"

#include <utility>

#include "base/limits.h"
#include "base/status.h"
#include "client/channel.h"
#include "client/error_text.h"
#include "client/hosts.h"
#include "client/join_token.h"
#include "client/run_file.h"

namespace pergola {
namespace {

// A coordinator ends its calls soon after the drain's own timeout; this bounds the wait for one
// that hangs.
constexpr std::chrono::seconds kDrainAnswer{10};

void Prepare(grpc::ClientContext& context, const std::string& token,
             std::chrono::milliseconds timeout) {
  context.AddMetadata(kJoinTokenKey, token);
  context.set_deadline(std::chrono::system_clock::now() + timeout);
}

}  // namespace

AdminClient::AdminClient(const std::string& address, std::string token)
    : stub_(v1::Admin::NewStub(Dial(address))), token_(std::move(token)) {}

absl::StatusOr<v1::StatusResponse> AdminClient::Status(std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  Prepare(context, token_, timeout);
  v1::StatusResponse response;
  RETURN_IF_ERROR(ToAbslStatus(stub_->Status(&context, v1::StatusRequest(), &response)));
  return response;
}

absl::StatusOr<v1::DrainResponse> AdminClient::Drain(std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  Prepare(context, token_, timeout + kDrainAnswer);
  v1::DrainRequest request;
  request.set_timeout_ms(static_cast<uint32_t>(timeout.count()));
  v1::DrainResponse response;
  RETURN_IF_ERROR(ToAbslStatus(stub_->Drain(&context, request, &response)));
  return response;
}

absl::StatusOr<AdminClient> ConnectAdmin(const AdminTarget& target) {
  if (target.connect_internal.empty() != target.token_file.empty()) {
    return absl::InvalidArgumentError(
        "--connect-internal and --join-token-file belong together: give both or none");
  }
  std::string source = "--connect-internal";
  std::string address = target.connect_internal;
  std::string token_file = target.token_file;
  if (address.empty()) {
    ASSIGN_OR_RETURN(const RunFile run, ReadRunFile(target.run_file));
    source = absl::StrCat("run file ", target.run_file, ":");
    address = run.internal_address;
    token_file = run.token_file;
  }
  RETURN_IF_ERROR(CheckDialable(source, address));
  ASSIGN_OR_RETURN(std::string token, ReadJoinToken(token_file));
  return AdminClient(address, std::move(token));
}

}  // namespace pergola

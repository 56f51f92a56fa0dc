#include "coordinator/http/http_server.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/system/system_error.hpp>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "coordinator/http/http_session.h"

namespace pergola {
namespace {

using boost::asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// Accepting failed (no file descriptors, most likely): when to try again.
constexpr std::chrono::milliseconds kAcceptRetry(100);

constexpr char kTooMany[] =
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    "Content-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n";

}  // namespace

class HttpServer::Impl {
 public:
  Impl(const HttpOptions& options, std::vector<HttpRoute> routes)
      : options_(options),
        routes_(std::move(routes)),
        acceptor_(context_),
        retry_(context_),
        thread_to_(std::make_shared<HttpThread>(&context_)),
        session_server_{&options_, &routes_, thread_to_,
                        [this](HttpSession* session) { sessions_.erase(session); }} {}

  ~Impl() { Stop(); }

  absl::Status Start() {
    RETURN_IF_ERROR(CheckBindable(options_.listen));
    ErrorCode error;
    tcp::resolver resolver(context_);
    const auto found = resolver.resolve(options_.listen.host, absl::StrCat(options_.listen.port),
                                        tcp::resolver::passive, error);
    if (error) return CannotListen(error);
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (error) return CannotListen(error);
    acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    acceptor_.bind(endpoint, error);
    if (error) return CannotListen(error);
    acceptor_.listen(boost::asio::socket_base::max_listen_connections, error);
    if (error) return CannotListen(error);
    const tcp::endpoint bound = acceptor_.local_endpoint(error);
    if (error) return CannotListen(error);
    address_ = FormatAddress({options_.listen.host, bound.port()});
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  void Stop() {
    thread_to_->Close();
    context_.stop();
    if (thread_.joinable()) thread_.join();
    sessions_.clear();
    ErrorCode ignored;
    acceptor_.close(ignored);
  }

  const std::string& address() const { return address_; }

 private:
  absl::Status CannotListen(const ErrorCode& error) const {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", FormatAddress(options_.listen), ": ", error.message()));
  }

  void Accept() {
    acceptor_.async_accept([this](ErrorCode error, tcp::socket socket) {
      if (error == boost::asio::error::operation_aborted) return;
      if (!error) {
        Accepted(std::move(socket));
        return Accept();
      }
      LOG_DEBUG("http: accepting failed: {}", error.message());
      retry_.expires_after(kAcceptRetry);
      retry_.async_wait([this](ErrorCode stopped) {
        if (!stopped) Accept();
      });
    });
  }

  void Accepted(tcp::socket socket) {
    if (sessions_.size() >= options_.max_connections) {
      // The buffer of a new connection has room for this, and nobody waits if it has not.
      ErrorCode ignored;
      socket.non_blocking(true, ignored);
      socket.write_some(boost::asio::buffer(kTooMany, sizeof(kTooMany) - 1), ignored);
      return;
    }
    auto session = std::make_shared<HttpSession>(std::move(socket), session_server_);
    sessions_.emplace(session.get(), session);
    session->Start();
  }

  const HttpOptions options_;
  const std::vector<HttpRoute> routes_;
  std::string address_;
  boost::asio::io_context context_{1};
  tcp::acceptor acceptor_;
  boost::asio::steady_timer retry_;
  const std::shared_ptr<HttpThread> thread_to_;  // the other owners are answers on their way
  const HttpSession::Server session_server_;
  // The second owner of a session is the operation that it waits for; while a handler works there
  // is none.
  std::map<HttpSession*, std::shared_ptr<HttpSession>> sessions_;
  std::thread thread_;
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options,
                                                              std::vector<HttpRoute> routes) {
  try {
    auto impl = std::make_unique<Impl>(options, std::move(routes));
    RETURN_IF_ERROR(impl->Start());
    return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
  } catch (const boost::system::system_error& error) {  // no epoll descriptor to be had
    return absl::UnavailableError(absl::StrCat("cannot serve HTTP: ", error.what()));
  }
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

const std::string& HttpServer::address() const {
  return impl_->address();
}

void HttpServer::Stop() {
  impl_->Stop();
}

}  // namespace pergola

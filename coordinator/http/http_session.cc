#include "coordinator/http/http_session.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace pergola {
namespace {

namespace http = boost::beast::http;
using Milliseconds = std::chrono::milliseconds;

// A connection that is given up is read to its end for so long, so that the answer is not lost to a
// reset (RFC 9112, section 9.6).
constexpr Milliseconds kLinger(1000);

HttpResponse Line(unsigned status, const std::string& text) {
  HttpResponse response;
  response.status = status;
  response.body = text + "\n";
  return response;
}

// What to tell a client whose bytes are no request that we take; nothing if the connection broke.
std::optional<HttpResponse> ReadError(const boost::beast::error_code& error,
                                      const HttpOptions& options) {
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    return Line(
        431, absl::StrCat("the header exceeds the limit of ", options.max_header_bytes, " bytes"));
  }
  if (error == http::error::body_limit) {
    return Line(413,
                absl::StrCat("the body exceeds the limit of ", options.max_body_bytes, " bytes"));
  }
  const bool broken = error == http::error::end_of_stream || error == http::error::partial_message;
  if (broken || error.category() != make_error_code(http::error::end_of_stream).category()) {
    return std::nullopt;
  }
  return Line(400, absl::StrCat("not an HTTP request: ", error.message()));
}

}  // namespace

void HttpThread::Post(std::function<void()> task) {
  MutexLock lock(mutex_);
  if (context_ != nullptr) boost::asio::post(*context_, std::move(task));
}

void HttpThread::Close() {
  MutexLock lock(mutex_);
  context_ = nullptr;
}

HttpSession::HttpSession(boost::asio::ip::tcp::socket socket, const Server& server)
    : server_(server), stream_(std::move(socket)), answer_timer_(stream_.get_executor()) {}

void HttpSession::Read() {
  parser_.emplace();
  parser_->header_limit(server_.options->max_header_bytes);
  parser_->body_limit(server_.options->max_body_bytes);
  stream_.expires_after(Milliseconds(server_.options->read_timeout_ms));
  http::async_read(stream_, buffer_, *parser_,
                   [self = shared_from_this()](ErrorCode error, size_t) { self->OnRead(error); });
}

void HttpSession::OnRead(ErrorCode error) {
  if (!error) return Handle();
  const std::optional<HttpResponse> response = ReadError(error, *server_.options);
  if (!response) return Close();
  Write(*response, /*keep_alive=*/false);
}

bool HttpSession::IsHead() const {
  return parser_->is_header_done() && parser_->get().method() == http::verb::head;
}

void HttpSession::Handle() {
  const auto& message = parser_->get();
  const std::string target(message.target().data(), message.target().size());
  const size_t mark = std::min(target.find('?'), target.size());
  HttpRequest request;
  request.method.assign(message.method_string().data(), message.method_string().size());
  request.path = target.substr(0, mark);
  request.query = target.substr(std::min(mark + 1, target.size()));
  request.body = message.body();

  // HEAD is GET whose answer comes without its body (RFC 9110, section 9.3.2).
  const std::string wanted = IsHead() ? "GET" : request.method;
  std::set<std::string> methods;
  std::set<std::string> paths;
  for (const HttpRoute& route : *server_.routes) {
    paths.insert(route.path);
    if (route.path != request.path) continue;
    if (route.method == wanted) return Ask(route, request);
    methods.insert(route.method);
  }
  if (methods.empty()) {
    const std::string known = absl::StrJoin(paths, ", ");
    return Write(Line(404, absl::StrCat("not found; here are ", known)), message.keep_alive());
  }
  allow_ = absl::StrJoin(methods, ", ");
  Write(Line(405, absl::StrCat("this path takes ", allow_)), message.keep_alive());
}

void HttpSession::Ask(const HttpRoute& route, const HttpRequest& request) {
  answering_ = true;
  const uint64_t exchange = ++exchange_;
  stream_.expires_never();
  answer_timer_.expires_after(Milliseconds(server_.options->answer_timeout_ms));
  answer_timer_.async_wait([weak = weak_from_this(), exchange](ErrorCode error) {
    const auto self = weak.lock();
    if (error || self == nullptr) return;
    self->Answer(exchange,
                 Line(503, absl::StrCat("no answer within ",
                                        self->server_.options->answer_timeout_ms, " ms")));
  });
  // Weak: an answer may come when the server is gone, and the socket must not outlive it.
  route.handler(request, [thread = server_.thread, weak = weak_from_this(),
                          exchange](std::function<HttpResponse()> make) {
    thread->Post([weak, exchange, make = std::move(make)] {
      const auto self = weak.lock();
      if (self != nullptr && self->answering_ && self->exchange_ == exchange) {
        self->Answer(exchange, make());
      }
    });
  });
}

void HttpSession::Answer(uint64_t exchange, const HttpResponse& response) {
  if (!answering_ || exchange_ != exchange || closed_) return;
  answering_ = false;
  answer_timer_.cancel();
  Write(response, parser_->get().keep_alive());
}

void HttpSession::Write(const HttpResponse& response, bool keep_alive) {
  response_ = {};
  response_.version(parser_->is_header_done() ? parser_->get().version() : 11);
  response_.result(response.status);
  response_.set(http::field::content_type, response.content_type);
  response_.set(http::field::cache_control, "no-store");
  if (!allow_.empty()) response_.set(http::field::allow, std::exchange(allow_, std::string()));
  response_.keep_alive(keep_alive);
  response_.body() = response.body;
  response_.prepare_payload();
  if (IsHead()) response_.body().clear();
  stream_.expires_after(Milliseconds(server_.options->write_timeout_ms));
  http::async_write(stream_, response_,
                    [self = shared_from_this(), keep_alive](ErrorCode error, size_t) {
                      self->OnWrite(error, keep_alive);
                    });
}

void HttpSession::OnWrite(ErrorCode error, bool keep_alive) {
  if (error) return Close();
  if (keep_alive) return Read();
  ErrorCode ignored;
  stream_.socket().shutdown(boost::asio::ip::tcp::socket::shutdown_send, ignored);
  stream_.expires_after(kLinger);
  Linger();
}

void HttpSession::Linger() {
  buffer_.clear();
  stream_.async_read_some(buffer_.prepare(4096),
                          [self = shared_from_this()](ErrorCode error, size_t) {
                            if (error) return self->Close();
                            self->Linger();
                          });
}

void HttpSession::Close() {
  if (std::exchange(closed_, true)) return;
  answer_timer_.cancel();
  stream_.close();
  server_.on_close(this);
}

}  // namespace pergola

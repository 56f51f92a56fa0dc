// One connection of HttpServer: reads a request, has it answered, writes the answer, again. Lives
// on the server's thread. Internal to this folder.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "coordinator/http/http_server.h"

namespace pergola {

// The way back to the server's thread for answers, closed before the thread ends: handlers may
// outlive the server.
class HttpThread {
 public:
  explicit HttpThread(boost::asio::io_context* context) : context_(context) {}
  // Drops `task` once closed.
  void Post(std::function<void()> task);
  void Close();

 private:
  Mutex mutex_;
  boost::asio::io_context* context_ GUARDED_BY(mutex_);
};

class HttpSession : public std::enable_shared_from_this<HttpSession> {
 public:
  struct Server {
    const HttpOptions* options;            // borrowed
    const std::vector<HttpRoute>* routes;  // borrowed
    std::shared_ptr<HttpThread> thread;    // second owner: answers on their way
    std::function<void(HttpSession*)> on_close;
  };
  HttpSession(boost::asio::ip::tcp::socket socket, const Server& server);

  void Start() { Read(); }

 private:
  using ErrorCode = boost::beast::error_code;

  void Read();
  void OnRead(ErrorCode error);
  bool IsHead() const;  // what was read last
  void Handle();
  void Ask(const HttpRoute& route, const HttpRequest& request);
  void Answer(uint64_t exchange, const HttpResponse& response);
  void Write(const HttpResponse& response, bool keep_alive);
  void OnWrite(ErrorCode error, bool keep_alive);
  void Linger();
  void Close();

  const Server& server_;
  boost::beast::tcp_stream stream_;
  boost::asio::steady_timer answer_timer_;
  boost::beast::flat_buffer buffer_;
  std::optional<boost::beast::http::request_parser<boost::beast::http::string_body>> parser_;
  boost::beast::http::response<boost::beast::http::string_body> response_;
  std::string allow_;       // of a 405
  uint64_t exchange_ = 0;   // tells the answers of this request from late ones of others
  bool answering_ = false;  // a handler owes an answer
  bool closed_ = false;
};

}  // namespace pergola

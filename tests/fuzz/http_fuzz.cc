// Any bytes as what a client sends to the HTTP listener: whole answers, and then the end of the
// connection.
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <string>
#include <string_view>

#include "base/check.h"
#include "coordinator/http/http_session.h"

namespace pergola {
namespace {

constexpr char kBody[] = "fuzzed page\n";

std::vector<HttpRoute> Routes() {
  const auto answer = [](const HttpRequest& request, const HttpAnswer& done) {
    PERGOLA_CHECK(request.path.find('?') == std::string::npos);
    PERGOLA_CHECK(request.body.size() <= 512);
    HttpResponse response;
    response.body = kBody;
    done([response] { return response; });
  };
  return {{"GET", "/page", answer}, {"POST", "/page", answer}};
}

// What the session sends back, once it has seen all of `bytes` and closed.
std::string Exchange(std::string_view bytes) {
  int ends[2] = {};
  PERGOLA_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  // Smaller than the kernel's buffer, which both directions fit into.
  PERGOLA_CHECK(write(ends[0], bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  shutdown(ends[0], SHUT_WR);
  HttpOptions options;
  options.max_header_bytes = 1024;
  options.max_body_bytes = 512;
  const std::vector<HttpRoute> routes = Routes();
  boost::asio::io_context context(1);
  const auto thread = std::make_shared<HttpThread>(&context);
  int closed = 0;
  const HttpSession::Server server{&options, &routes, thread, [&](HttpSession*) { ++closed; }};
  boost::asio::ip::tcp::socket socket(context);
  socket.assign(boost::asio::ip::tcp::v4(), ends[1]);
  // Held as HttpServer holds it: an answer on its way does not.
  const auto session = std::make_shared<HttpSession>(std::move(socket), server);
  session->Start();
  context.run();
  thread->Close();
  PERGOLA_CHECK(closed == 1);
  std::string answers;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) {
    answers.append(buffer, static_cast<size_t>(n));
  }
  close(ends[0]);
  return answers;
}

}  // namespace
}  // namespace pergola

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // A shorter one is as good, and its answers fit into the socket's buffer.
  constexpr size_t kMaxBytes = 4096;
  const std::string_view bytes(reinterpret_cast<const char*>(data), std::min(size, kMaxBytes));
  const std::string answers = pergola::Exchange(bytes);
  PERGOLA_CHECK(answers.empty() || answers.rfind("HTTP/1.", 0) == 0);
  PERGOLA_CHECK(answers.empty() || answers.back() == '\n');
  return 0;
}

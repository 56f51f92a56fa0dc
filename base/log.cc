#include "base/log.h"

#include "spdlog/sinks/stdout_color_sinks.h"

namespace pergola {

bool InitLog(const std::string& name, const std::string& level) {
  auto logger = std::make_shared<spdlog::logger>(
      name, std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%L%$ %n %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(logger);
  const bool known = level == "debug" || level == "info" || level == "warn" || level == "error";
  spdlog::set_level(known ? spdlog::level::from_str(level) : spdlog::level::info);
  return known;
}

}  // namespace pergola

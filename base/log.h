// Logging to standard error, one line per event, through spdlog. An error is logged once, where it
// starts.
#pragma once

#include <string>

#include "spdlog/spdlog.h"

namespace pergola {

// Sends all log lines to standard error as "2026-01-01 00:00:00.000 I name text". `level` is debug,
// info, warn or error; anything else returns false and leaves info.
bool InitLog(const std::string& name, const std::string& level);

}  // namespace pergola

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)

#include "client/run_file.h"

#include <utility>

#include "base/status.h"
#include "client/files.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxRunFileBytes = 64 << 10;

absl::Status ReadField(const Json& object, const char* name, std::string* value) {
  const auto field = object.find(name);
  if (field == object.end() || !field->is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("field '", name, "' must be a string"));
  }
  *value = field->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadField(const Json& object, const char* name, int* value) {
  const auto field = object.find(name);
  if (field == object.end() || !field->is_number_integer() || field->get<int64_t>() < 0 ||
      field->get<int64_t>() > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("field '", name, "' must be a process id"));
  }
  *value = static_cast<int>(field->get<int64_t>());
  return absl::OkStatus();
}

// Left as it is if the field is missing.
absl::Status ReadOptional(const Json& object, const char* name, std::string* value) {
  return object.contains(name) ? ReadField(object, name, value) : absl::OkStatus();
}

absl::StatusOr<Json> ParseObject(const std::string& text) {
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  return object;
}

absl::Status ReadGroups(const Json& object, std::vector<RunFile::Group>* groups) {
  const auto field = object.find("groups");
  if (field == object.end() || !field->is_array() || field->empty()) {
    return absl::InvalidArgumentError("field 'groups' must be a list of groups");
  }
  for (const Json& item : *field) {
    if (!item.is_object()) return absl::InvalidArgumentError("field 'groups' holds no groups");
    RunFile::Group group;
    RETURN_IF_ERROR(ReadField(item, "name", &group.name));
    RETURN_IF_ERROR(ReadField(item, "mpirun_pid", &group.mpirun_pid));
    groups->push_back(std::move(group));
  }
  return absl::OkStatus();
}

}  // namespace

std::string RunFileToJson(const RunFile& run) {
  Json groups = Json::array();
  for (const RunFile::Group& group : run.groups) {
    groups.push_back({{"name", group.name}, {"mpirun_pid", group.mpirun_pid}});
  }
  const Json object = {{"model", run.model},
                       {"public_address", run.public_address},
                       {"internal_address", run.internal_address},
                       {"http_address", run.http_address},
                       {"token_file", run.token_file},
                       {"up_pid", run.up_pid},
                       {"coordinator_pid", run.coordinator_pid},
                       {"groups", groups}};
  return object.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<RunFile> RunFileFromJson(const std::string& json) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(json));
  RunFile run;
  RETURN_IF_ERROR(ReadField(object, "model", &run.model));
  RETURN_IF_ERROR(ReadField(object, "public_address", &run.public_address));
  RETURN_IF_ERROR(ReadField(object, "internal_address", &run.internal_address));
  RETURN_IF_ERROR(ReadOptional(object, "http_address", &run.http_address));
  RETURN_IF_ERROR(ReadField(object, "token_file", &run.token_file));
  RETURN_IF_ERROR(ReadField(object, "up_pid", &run.up_pid));
  RETURN_IF_ERROR(ReadField(object, "coordinator_pid", &run.coordinator_pid));
  RETURN_IF_ERROR(ReadGroups(object, &run.groups));
  return run;
}

absl::StatusOr<RunFile> ReadRunFile(const std::string& path) {
  absl::StatusOr<std::string> text = ReadSmallFile(path, kMaxRunFileBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::NotFoundError(absl::StrCat("no pergola is running here: there is no run file ",
                                            path, "; start one with 'pergola up MODEL'"));
  }
  if (!text.ok()) return text.status();
  absl::StatusOr<RunFile> run = RunFileFromJson(*text);
  if (!run.ok()) return Prefixed(run.status(), absl::StrCat("run file ", path));
  return run;
}

absl::StatusOr<CoordinatorFile> CoordinatorFileFromJson(const std::string& json) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(json));
  CoordinatorFile file;
  RETURN_IF_ERROR(ReadField(object, "pid", &file.pid));
  RETURN_IF_ERROR(ReadField(object, "public_address", &file.public_address));
  RETURN_IF_ERROR(ReadField(object, "internal_address", &file.internal_address));
  RETURN_IF_ERROR(ReadOptional(object, "http_address", &file.http_address));
  return file;
}

std::string DefaultRunFile(const std::string& runtime_dir) {
  return runtime_dir + "/run.json";
}

}  // namespace pergola

#include "client/run_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "client/files.h"
#include "client/join_token.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using ::testing::HasSubstr;

// A directory of this test alone, made anew.
std::string FreshPath(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/client_" + std::to_string(getpid()) + name;
  const std::string command = "rm -rf '" + path + "'";
  EXPECT_EQ(system(command.c_str()), 0);
  return path;
}

RunFile Example() {
  RunFile run;
  run.model = "/models/\"odd\" name.gguf";
  run.public_address = "127.0.0.1:1";
  run.internal_address = "127.0.0.1:2";
  run.http_address = "127.0.0.1:3";
  run.token_file = "/run/token";
  run.up_pid = 11;
  run.coordinator_pid = 12;
  run.groups = {{"group-0", 13}, {"group-1", 0}};
  return run;
}

TEST(RunFileTest, ReadsBackWhatItWrote) {
  const auto run = RunFileFromJson(RunFileToJson(Example()));
  ASSERT_TRUE(run.ok()) << run.status();
  EXPECT_EQ(run->model, Example().model);
  EXPECT_EQ(run->public_address, "127.0.0.1:1");
  EXPECT_EQ(run->internal_address, "127.0.0.1:2");
  EXPECT_EQ(run->http_address, "127.0.0.1:3");
  EXPECT_EQ(run->token_file, "/run/token");
  EXPECT_EQ(run->up_pid, 11);
  EXPECT_EQ(run->coordinator_pid, 12);
  ASSERT_EQ(run->groups.size(), 2U);
  EXPECT_EQ(run->groups[0].mpirun_pid, 13);
  EXPECT_EQ(run->groups[1].name, "group-1");
  EXPECT_EQ(run->groups[1].mpirun_pid, 0);
}

TEST(RunFileTest, NamesEachFieldThatIsMissing) {
  for (const char* field : {"model", "public_address", "internal_address", "token_file", "up_pid",
                            "coordinator_pid", "groups"}) {
    nlohmann::json json = nlohmann::json::parse(RunFileToJson(Example()));
    json.erase(field);
    EXPECT_THAT(std::string(RunFileFromJson(json.dump()).status().message()), HasSubstr(field));
  }
}

TEST(RunFileTest, ACoordinatorWithoutHttpIsOne) {
  const std::string json = R"({"pid": 1, "public_address": "a", "internal_address": "b"})";
  const auto file = CoordinatorFileFromJson(json);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->http_address, "");
  EXPECT_FALSE(
      CoordinatorFileFromJson(json.substr(0, json.size() - 1) + R"(, "http_address": 3})").ok());
}

TEST(RunFileTest, RefusesWhatIsNoObjectOrHasAbsurdPids) {
  for (const char* text : {"", "[]", "3", "{", "{\"pid\": -1}"}) {
    EXPECT_FALSE(RunFileFromJson(text).ok()) << text;
    EXPECT_FALSE(CoordinatorFileFromJson(text).ok()) << text;
  }
  EXPECT_FALSE(CoordinatorFileFromJson(
                   R"({"pid": 99999999999, "public_address": "a", "internal_address": "b"})")
                   .ok());
}

TEST(RunFileTest, RefusesGroupsThatAreNone) {
  for (const char* groups :
       {"{}", "[]", "[3]", "[{}]", R"([{"name": "a"}])", R"([{"name": "a", "mpirun_pid": -1}])"}) {
    nlohmann::json json = nlohmann::json::parse(RunFileToJson(Example()));
    json["groups"] = nlohmann::json::parse(groups);
    EXPECT_FALSE(RunFileFromJson(json.dump()).ok()) << groups;
  }
}

TEST(RunFileTest, SaysThatNothingRunsWhereThereIsNone) {
  const auto run = ReadRunFile("/nonexistent/run.json");
  EXPECT_EQ(run.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(run.status().message()), HasSubstr("no pergola is running"));
}

TEST(FilesTest, PrivateFilesAreReadableByTheirOwnerAlone) {
  const std::string dir = FreshPath("/private");
  ASSERT_TRUE(MakePrivateDirectory(dir).ok());
  ASSERT_TRUE(WritePrivateFile(dir + "/f", "one").ok());
  ASSERT_TRUE(WritePrivateFile(dir + "/f", "two").ok());
  EXPECT_EQ(*ReadSmallFile(dir + "/f", 3), "two");
  EXPECT_EQ(ReadSmallFile(dir + "/f", 2).status().code(), absl::StatusCode::kInvalidArgument);
  struct stat info = {};
  ASSERT_EQ(stat((dir + "/f").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  ASSERT_EQ(stat(dir.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700U);
}

TEST(FilesTest, RefusesADirectoryThatOthersCanEnter) {
  const std::string dir = FreshPath("_open");
  ASSERT_EQ(mkdir(dir.c_str(), 0700), 0);
  ASSERT_EQ(chmod(dir.c_str(), 0755), 0);
  EXPECT_THAT(std::string(MakePrivateDirectory(dir).message()), HasSubstr("mode 0755"));
}

TEST(FilesTest, RefusesALinkInPlaceOfADirectory) {
  const std::string link = FreshPath("_link");
  ASSERT_EQ(symlink("/tmp", link.c_str()), 0);
  EXPECT_FALSE(MakePrivateDirectory(link).ok());
  unlink(link.c_str());
}

TEST(JoinTokenTest, IsLongHexAndNeverTheSame) {
  const std::string token = *MakeJoinToken();
  EXPECT_EQ(token.size(), 64U);
  EXPECT_EQ(token.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_NE(token, *MakeJoinToken());
}

TEST(JoinTokenTest, FileMayEndWithANewlineButMustNotBeEmpty) {
  const std::string path = FreshPath("_token");
  std::ofstream(path) << "abc\n";
  EXPECT_EQ(*ReadJoinToken(path), "abc");
  std::ofstream(path) << " \n";
  EXPECT_EQ(ReadJoinToken(path).status().code(), absl::StatusCode::kInvalidArgument);
  unlink(path.c_str());
  EXPECT_EQ(ReadJoinToken(path).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace pergola

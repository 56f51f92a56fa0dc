// A request against the byte model, built without a server.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "coordinator/doors/request_builder.h"
#include "tests/coordinator/served_model.h"

namespace pergola {

class RequestBuilderTest : public ::testing::Test {
 protected:
  RequestBuilderTest() {
    request_.set_text("abc");
    inputs_.served = {&parts_, &tokenizer_};
    inputs_.limits = LimitsFor(parts_, ServingLimits());
    inputs_.request_id = "made";
    inputs_.draw_seed = [this] { return ++seeds_drawn_ + 100; };
  }

  google::rpc::Status Build() {
    built_ = BuiltRequest();
    google::rpc::Status status = BuildRequest(request_, inputs_, &built_);
    sequence_ = SequenceRequest();
    if (!built_.sequences.empty()) sequence_ = std::move(built_.sequences[0].request);
    return status;
  }

  std::vector<std::string> Refused() {
    const google::rpc::Status status = Build();
    EXPECT_EQ(status.code(), 3) << status.ShortDebugString();
    return ViolationsOf(status);
  }

  TextParts parts_ = ByteModelParts();
  ByteTokenizer tokenizer_;
  BuildInputs inputs_;
  v1::GenerateRequest request_;
  BuiltRequest built_;
  SequenceRequest sequence_;  // the first one built
  uint64_t seeds_drawn_ = 0;
};

}  // namespace pergola

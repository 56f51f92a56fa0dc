#include "coordinator/doors/wire.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/tokenizer.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "google/protobuf/dynamic_message.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"

namespace pergola {
namespace {

namespace pb = google::protobuf;
using pb::internal::WireFormatLite;

void BytesForStrings(pb::DescriptorProto* message) {
  for (auto& field : *message->mutable_field()) {
    if (field.type() == pb::FieldDescriptorProto::TYPE_STRING) {
      field.set_type(pb::FieldDescriptorProto::TYPE_BYTES);
    }
  }
  for (auto& nested : *message->mutable_nested_type()) {
    if (!nested.options().map_entry()) BytesForStrings(&nested);
  }
}

// A copy of the file, and of those it imports, in which every string field is a bytes field: the
// same wire format without protobuf's own UTF-8 check.
const pb::FileDescriptor* MirrorFile(const pb::FileDescriptor* file, pb::DescriptorPool* pool) {
  if (const pb::FileDescriptor* known = pool->FindFileByName(file->name())) return known;
  for (int i = 0; i < file->dependency_count(); ++i) {
    if (MirrorFile(file->dependency(i), pool) == nullptr) return nullptr;
  }
  pb::FileDescriptorProto proto;
  file->CopyTo(&proto);
  for (auto& message : *proto.mutable_message_type()) BytesForStrings(&message);
  return pool->BuildFile(proto);
}

// `message` is of the mirror, `original` the type it mirrors.
void AddInvalidText(const pb::Message& message, const pb::Descriptor& original,
                    const std::string& path, Violations* violations) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const pb::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const pb::FieldDescriptor* field : fields) {
    const pb::FieldDescriptor* twin = original.FindFieldByNumber(field->number());
    if (twin == nullptr) continue;
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      std::string name = absl::StrCat(path, field->name());
      if (field->is_repeated()) absl::StrAppend(&name, "[", i, "]");
      if (twin->type() == pb::FieldDescriptor::TYPE_STRING) {
        const std::string text = field->is_repeated()
                                     ? reflection.GetRepeatedString(message, field, i)
                                     : reflection.GetString(message, field);
        const int64_t at = FindInvalidUtf8(text);
        if (at >= 0) violations->Add(name, absl::StrCat("invalid UTF-8 at byte ", at));
      } else if (twin->type() == pb::FieldDescriptor::TYPE_MESSAGE) {
        const pb::Message& inner = field->is_repeated()
                                       ? reflection.GetRepeatedMessage(message, field, i)
                                       : reflection.GetMessage(message, field);
        AddInvalidText(inner, *twin->message_type(), name + ".", violations);
      }
    }
  }
}

void Diagnose(std::string_view bytes, const pb::Descriptor& type, Violations* violations) {
  pb::DescriptorPool pool;
  pb::DynamicMessageFactory factory(&pool);
  const pb::FileDescriptor* file = MirrorFile(type.file(), &pool);
  const pb::Descriptor* mirror =
      file == nullptr ? nullptr : file->FindMessageTypeByName(type.name());
  if (mirror == nullptr) return;
  const std::unique_ptr<pb::Message> message(factory.GetPrototype(mirror)->New());
  if (!message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  AddInvalidText(*message, type, "", violations);
}

}  // namespace

bool ParseMessage(std::string_view bytes, pb::Message* message, Violations* violations) {
  if (message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return true;
  Diagnose(bytes, *message->GetDescriptor(), violations);
  if (violations->empty()) {
    violations->Add("", absl::StrCat("the ", bytes.size(), " bytes are not a ",
                                     message->GetDescriptor()->full_name()));
  }
  return false;
}

bool SplitItems(std::string_view bytes, size_t max_items, const std::string& type,
                std::vector<std::string_view>* items, Violations* violations) {
  pb::io::CodedInputStream input(reinterpret_cast<const uint8_t*>(bytes.data()),
                                 static_cast<int>(bytes.size()));
  constexpr uint32_t kItemTag =
      WireFormatLite::MakeTag(1, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  while (const uint32_t tag = input.ReadTag()) {
    if (tag != kItemTag) {
      if (WireFormatLite::SkipField(&input, tag)) continue;
      break;
    }
    uint32_t length = 0;
    if (!input.ReadVarint32(&length)) break;
    const auto start = static_cast<size_t>(input.CurrentPosition());
    if (length > bytes.size() - start || !input.Skip(static_cast<int>(length))) break;
    items->push_back(bytes.substr(start, length));
    if (items->size() > max_items) return true;
  }
  if (static_cast<size_t>(input.CurrentPosition()) == bytes.size() &&
      input.ConsumedEntireMessage()) {
    return true;
  }
  violations->Add("", absl::StrCat("the ", bytes.size(), " bytes are not a ", type));
  return false;
}

}  // namespace pergola

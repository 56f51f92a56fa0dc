#include "kernels/cuda/row_sampler.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/sample_math.h"

namespace pergola {
namespace {

// Candidates of rows whose number the request does not say: top_p and min_p. Nuclei of text are
// mostly tens of ids; 512 of them are 4 KiB a row.
constexpr int32_t kNucleusCandidates = 512;
// Beyond, 1 / temperature and distances times it leave f32, in which a draw compares.
constexpr float kHighestTemperature = 1e30F;

int64_t RoundUp(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

absl::Status CudaStatus(cudaError_t error, const char* operation) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(operation, ": ", CudaWords(error));
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

bool Typical(const SampleRow& row) {
  return row.typical_p > 0 && row.typical_p < 1;
}
bool TopK(const SampleRow& row, int64_t vocabulary) {
  return row.top_k > 0 && row.top_k < vocabulary;
}
bool Filters(const SampleRow& row, int64_t vocabulary) {
  return TopK(row, vocabulary) || row.top_p < 1 || row.min_p > 0 || Typical(row);
}

// Whether no job could answer the draw (see sample_merge.h).
bool NeedsHost(const SampleRow& row, int64_t vocabulary) {
  if (row.temperature == 0) return false;
  if (row.temperature > kHighestTemperature) return true;
  if (TopK(row, vocabulary)) return row.top_k > kMaxCandidates;
  return Typical(row) && row.top_p >= 1 && !(row.min_p > 0) && vocabulary > kMaxCandidates;
}

// How many of the best ids a draw with filters looks at.
int32_t DrawCandidates(const SampleRow& row, int64_t vocabulary) {
  if (TopK(row, vocabulary)) return static_cast<int32_t>(row.top_k);
  return row.top_p < 1 || row.min_p > 0 ? kNucleusCandidates : kMaxCandidates;
}

// The bytes of `mask` that hold the slice's bits: the first is bit slice.begin % 8 of the copy.
void CopyBits(const uint8_t* mask, const Range& slice, uint8_t* to) {
  if (slice.size() == 0) return;
  std::memcpy(to, mask + slice.begin / 8,
              static_cast<size_t>((slice.end + 7) / 8 - slice.begin / 8));
}

}  // namespace

RowSampler::Offsets::Offsets(const RowSamplerShape& shape) {
  int64_t at = RoundUp(2 * shape.tasks * static_cast<int64_t>(sizeof(SampleJob)));
  const auto take = [&at](int64_t bytes) {
    const int64_t begin = at;
    at += RoundUp(bytes);
    return begin;
  };
  edit_rows = take(shape.tasks * static_cast<int64_t>(sizeof(SampleEditRow)));
  edits = take(shape.edits * static_cast<int64_t>(sizeof(SampleEdit)));
  mask_bytes = shape.slice.size() / 8 + 2;
  masks = take(shape.tasks * mask_bytes);
  unedited = at;
  end = at + RoundUp(shape.edits * static_cast<int64_t>(sizeof(float)));
}

int64_t RowSampler::MostAnswerBytes(const RowSamplerShape& shape) {
  return AnswerLayout{2 * shape.tasks, kMaxCandidates, true}.bytes();
}

RowSamplerBytes RowSampler::Bytes(const RowSamplerShape& shape) {
  const Offsets offsets(shape);
  RowSamplerBytes bytes;
  bytes.device = offsets.end + MostAnswerBytes(shape);
  bytes.pinned = offsets.unedited + MostAnswerBytes(shape);
  bytes.host = EditLister::Bytes(shape.slice, shape.history) +
               shape.tasks * static_cast<int64_t>(sizeof(TaskJobs));
  bytes.workspace = SampleScratchBytes(2 * shape.tasks, shape.slice.size());
  bytes.answers = MostAnswerBytes(shape);
  return bytes;
}

RowSampler::RowSampler(const RowSamplerShape& shape, const CudaContext& context,
                       const RowSamplerMemory& memory)
    : shape_(shape),
      context_(context),
      offsets_(shape),
      upload_{memory.pinned},
      device_{memory.device},
      device_answers_{memory.device + offsets_.end},
      host_answers_{memory.pinned + offsets_.unedited},
      lister_(shape.slice, shape.history),
      task_jobs_(shape.tasks) {}

RowSampler::~RowSampler() = default;

absl::StatusOr<std::unique_ptr<RowSampler>> RowSampler::Create(const RowSamplerShape& shape,
                                                               const CudaContext& context,
                                                               const RowSamplerMemory& memory) {
  if (shape.widest_slice > kMaxSampleValues) {
    return absl::InvalidArgumentError(absl::StrCat("a rank's slice of the vocabulary has ",
                                                   shape.widest_slice, " ids, the limit is ",
                                                   kMaxSampleValues));
  }
  PERGOLA_CHECK(shape.slice.size() <= shape.widest_slice);
  PERGOLA_CHECK(Bytes(shape).workspace <= context.workspace_bytes);
  return std::unique_ptr<RowSampler>(new RowSampler(shape, context, memory));
}

const uint8_t* RowSampler::device_answers() const {
  return device_answers_.at<uint8_t>(0);
}
const uint8_t* RowSampler::host_answers() const {
  return host_answers_.at<uint8_t>(0);
}

int32_t RowSampler::AddJob(const SampleTask& task) {
  SampleJob& added = *job(static_cast<int32_t>(job_count_));
  added = SampleJob();
  added.logits = task.row.logits;
  return static_cast<int32_t>(job_count_++);
}

void RowSampler::AddLogprobs(const SampleTask& task, SampleJob* to) const {
  const int top = task.draw && task.logprobs ? task.top : 0;
  to->flags |= kJobLogTotal;
  to->candidates = std::max(to->candidates, std::max(top, task.target >= 0 ? task.target_top : 0));
  if (task.target >= shape_.slice.begin && task.target < shape_.slice.end) {
    to->target = static_cast<int32_t>(task.target - shape_.slice.begin);
  }
}

void RowSampler::AddEdits(const SampleRow& row, SampleJob* to) {
  auto* edits = upload_.at<SampleEdit>(offsets_.edits) + edit_count_;
  const int64_t count = lister_.List(row, edits);
  // Sorted, so that the device finds an id's unedited logit.
  if ((to->flags & kJobRaw) != 0) {
    std::sort(edits, edits + count,
              [](const SampleEdit& a, const SampleEdit& b) { return a.id < b.id; });
  }
  to->first_edit = static_cast<int32_t>(edit_count_);
  to->edit_count = static_cast<int32_t>(count);
  SampleEditRow& edited = upload_.at<SampleEditRow>(offsets_.edit_rows)[edit_row_count_++];
  edited.logits = const_cast<float*>(row.logits);  // RestoreLogitsCuda puts it back
  edited.first_edit = to->first_edit;
  edited.edit_count = to->edit_count;
  edited.repetition_penalty = row.repetition_penalty;
  edited.presence_penalty = row.presence_penalty;
  edited.frequency_penalty = row.frequency_penalty;
  edit_count_ += count;
}

void RowSampler::AddMask(const SampleRow& row, SampleJob* to) {
  const Range& slice = shape_.slice;
  to->mask = mask_count_++ * offsets_.mask_bytes;
  to->mask_shift = static_cast<int32_t>(slice.begin % 8);
  uint8_t* bits = upload_.at<uint8_t>(offsets_.masks) + to->mask;
  if (row.mask_ids == nullptr) return CopyBits(row.mask, slice, bits);
  std::memset(bits, 0, static_cast<size_t>(offsets_.mask_bytes));
  for (int64_t i = 0; i < row.mask_id_count; ++i) {
    const int64_t id = row.mask_ids[i];
    if (id < slice.begin || id >= slice.end) continue;
    if (!MaskAllows(row.mask, id)) continue;
    const int64_t bit = id - slice.begin + to->mask_shift;
    bits[bit / 8] |= static_cast<uint8_t>(1U << (bit % 8));
  }
}

// The job behind a draw, with the log-probabilities where they are of the same logits.
void RowSampler::AddDraw(const SampleTask& task, TaskJobs* jobs) {
  const SampleRow& row = task.row;
  jobs->draw = AddJob(task);
  SampleJob* draw = job(jobs->draw);
  const bool filters = row.temperature > 0 && Filters(row, shape_.vocabulary);
  if (row.temperature > 0) {
    draw->temperature = static_cast<double>(row.temperature);
    draw->inverse = 1.0 / draw->temperature;
    draw->seed = row.seed;
    draw->index = row.index;
    draw->position = row.position;
    if (filters) draw->candidates = DrawCandidates(row, shape_.vocabulary);
    if (filters && row.top_p < 1 && !TopK(row, shape_.vocabulary)) draw->flags |= kJobTotal;
    if (!filters) draw->flags |= kJobDraw;
  }
  const bool logprobs = task.logprobs || task.target >= 0;
  if (logprobs && jobs->logprobs < 0 && !row.edits() && (draw->flags & kJobDraw) == 0) {
    jobs->logprobs = jobs->draw;
    AddLogprobs(task, draw);
  }
  if (ListsEdits(row)) {
    if (task.logprobs) {
      draw->flags |= kJobRaw;
      layout_.raw = true;
      // A greedy choice comes as a candidate, for its unedited logit.
      if ((draw->flags & kJobDraw) == 0) draw->candidates = std::max(draw->candidates, 1);
    }
    AddEdits(row, draw);
  }
  if (row.mask != nullptr || row.mask_ids != nullptr) AddMask(row, draw);
}

void RowSampler::Prepare(absl::Span<const SampleTask> tasks) {
  PERGOLA_CHECK(static_cast<int64_t>(tasks.size()) <= shape_.tasks);
  layout_ = AnswerLayout();
  job_count_ = edit_row_count_ = edit_count_ = edit_bound_ = mask_count_ = 0;
  // Log-probabilities are of the unedited logits: theirs come first where a row is edited. What is
  // left to the host must not depend on the slice.
  for (size_t i = 0; i < tasks.size(); ++i) {
    const SampleTask& task = tasks[i];
    PERGOLA_CHECK(task.top <= kMaxTopLogprobs && task.target_top <= kMaxTopLogprobs);
    task_jobs_[i] = TaskJobs();
    if (!task.draw) continue;
    const int64_t bound = ListsEdits(task.row) ? EditBound(task.row, shape_.widest_slice) : 0;
    task_jobs_[i].host =
        NeedsHost(task.row, shape_.vocabulary) || edit_bound_ + bound > shape_.edits;
    if (task_jobs_[i].host || !ListsEdits(task.row)) continue;
    edit_bound_ += bound;
    if (!task.logprobs && task.target < 0) continue;
    task_jobs_[i].logprobs = AddJob(task);
    AddLogprobs(task, job(task_jobs_[i].logprobs));
  }
  early_jobs_ = job_count_;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const SampleTask& task = tasks[i];
    TaskJobs* jobs = &task_jobs_[i];
    if (jobs->host) continue;
    if (task.draw) AddDraw(task, jobs);
    if (jobs->logprobs >= 0 || (task.target < 0 && !(task.draw && task.logprobs))) continue;
    jobs->logprobs = AddJob(task);
    AddLogprobs(task, job(jobs->logprobs));
  }
  layout_.jobs = job_count_;
  early_lists_ = late_lists_ = false;
  for (int32_t i = 0; i < job_count_; ++i) {
    const bool draw = (job(i)->flags & kJobDraw) != 0;
    const int64_t wanted = draw ? kDrawCandidates : job(i)->candidates;
    layout_.stride = std::max(layout_.stride, wanted);
    bool& lists = i < early_jobs_ ? early_lists_ : late_lists_;
    lists = lists || wanted > 0;
  }
}

absl::Status RowSampler::Upload(int64_t offset, int64_t bytes) {
  if (bytes == 0) return absl::OkStatus();
  EndOverlap(context_);
  return CudaStatus(
      cudaMemcpyAsync(device_.at<uint8_t>(offset), upload_.at<uint8_t>(offset),
                      static_cast<size_t>(bytes), cudaMemcpyHostToDevice, context_.stream),
      "copy of the sampling jobs to the device");
}

SampleArgs RowSampler::ArgsOf(int64_t first, int64_t count) const {
  SampleArgs args;
  args.jobs = device_.at<SampleJob>(0) + first;
  args.job_count = count;
  args.lists = first < early_jobs_ ? early_lists_ : late_lists_;
  args.values = shape_.slice.size();
  args.first_id = static_cast<int32_t>(shape_.slice.begin);
  args.masks = device_.at<uint8_t>(offsets_.masks);
  args.edits = device_.at<SampleEdit>(offsets_.edits);
  args.unedited = device_.at<float>(offsets_.unedited);
  args.answers = device_answers_.at<SampleAnswer>(0) + first;
  args.candidates =
      device_answers_.at<ValueAndId>(layout_.candidates_offset()) + first * layout_.stride;
  if (layout_.raw) {
    args.candidates_raw = device_answers_.at<float>(layout_.raw_offset()) + first * layout_.stride;
  }
  args.stride = layout_.stride;
  return args;
}

absl::Status RowSampler::Enqueue() {
  RETURN_IF_ERROR(Upload(0, job_count_ * static_cast<int64_t>(sizeof(SampleJob))));
  RETURN_IF_ERROR(
      Upload(offsets_.edit_rows, edit_row_count_ * static_cast<int64_t>(sizeof(SampleEditRow))));
  RETURN_IF_ERROR(Upload(offsets_.edits, edit_count_ * static_cast<int64_t>(sizeof(SampleEdit))));
  RETURN_IF_ERROR(Upload(offsets_.masks, mask_count_ * offsets_.mask_bytes));
  EditArgs edits;
  edits.rows = device_.at<SampleEditRow>(offsets_.edit_rows);
  edits.row_count = edit_row_count_;
  edits.edits = device_.at<SampleEdit>(offsets_.edits);
  edits.unedited = device_.at<float>(offsets_.unedited);
  SampleJobsCuda(context_, ArgsOf(0, early_jobs_));
  EditLogitsCuda(context_, edits);
  SampleJobsCuda(context_, ArgsOf(early_jobs_, job_count_ - early_jobs_));
  RestoreLogitsCuda(context_, edits);
  return absl::OkStatus();
}

absl::Status RowSampler::CopyAnswers() {
  if (layout_.bytes() == 0) return absl::OkStatus();
  EndOverlap(context_);
  return CudaStatus(cudaMemcpyAsync(host_answers_.at<uint8_t>(0), device_answers_.at<uint8_t>(0),
                                    static_cast<size_t>(layout_.bytes()), cudaMemcpyDeviceToHost,
                                    context_.stream),
                    "copy of the sampling answers to the host");
}

}  // namespace pergola

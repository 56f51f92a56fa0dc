#include "worker/weights/load_pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/mutex.h"
#include "base/status.h"
#include "kernels/cpu_stream.h"
#include "kernels/thread_pool.h"
#include "model/cuda_packed_size.h"
#include "model/device_piece.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

// How far the file is told ahead what will be read: some milliseconds of a fast disk.
constexpr int64_t kPrefetchBytes = int64_t{64} << 20;
// Packed rows of a panel (kernels/packed_layout.h) share cache lines.
constexpr int64_t kRowsOfAPanel = 32;

// Rows of a piece that are copied together: all, or as many as staging holds.
struct Unit {
  const WeightPiece* piece;
  int64_t first_row, rows;
  uint8_t* memory;
  int64_t bytes;
};

// Some rows of one weight, or a vector: what a thread does at once.
struct Task {
  const WeightPiece* piece;
  const WeightItem* item;
  int64_t begin, count;  // rows of the cut; all of a vector
  int64_t first_row;     // of the unit: where row 0 of the weight goes
  PackedShape shape;     // of the unit
  uint8_t* memory;       // of the unit, in the stage's memory
  size_t portion;        // on a GPU
};

// What goes to the device in one copy.
struct Portion {
  int64_t layer = -1;
  uint8_t* device = nullptr;
  int64_t bytes = 0;
  size_t tasks_left = 0;
  bool begun = false;
  // Bytes that no task writes, from the beginning of the portion.
  std::vector<Range> gaps;
};

int64_t ReadBytesOf(const Task& task) {
  if (task.piece->vector) return task.item->read_bytes();
  if (!task.item->binding->transposed) return task.count * task.item->row_bytes();
  return task.item->read_columns().size() * DTypeBytes(task.item->dtype(), task.count);
}

std::vector<Unit> UnitsOf(const WeightPiece& piece, int64_t head_dim, int64_t staging_bytes) {
  const bool splits = !piece.vector && !piece.shape.panels && CudaMatrixIsRows(piece.shape.dtype);
  if (piece.bytes <= staging_bytes || !splits) {
    return {Unit{&piece, 0, piece.shape.rows, piece.memory, piece.bytes}};
  }
  int64_t together = 1;
  for (const WeightPiece::Source& source : piece.sources) {
    together = std::max(together, source.item->RowUnit(head_dim));
  }
  const int64_t stride = piece.bytes / piece.shape.rows;
  const int64_t most = std::max<int64_t>(1, staging_bytes / (stride * together)) * together;
  std::vector<Unit> units;
  for (int64_t row = 0; row < piece.shape.rows; row += most) {
    const int64_t rows = std::min(most, piece.shape.rows - row);
    units.push_back(Unit{&piece, row, rows, piece.memory + row * stride, rows * stride});
  }
  return units;
}

class Pipeline {
 public:
  Pipeline(const Checkpoint& checkpoint, Stream& stream, const ByteProgress& progress,
           const LoadLimits& limits)
      : checkpoint_(checkpoint),
        stream_(stream),
        progress_(progress),
        limits_(limits),
        prefetch_tasks_(static_cast<size_t>(kPrefetchBytes / limits.pack.read_bytes)),
        uploads_(stream.device() != Device::kCpu) {}

  void Add(const WeightPiece& piece, bool together);
  absl::StatusOr<LoadTimes> Run();

 private:
  void Place(const Unit& unit, bool together);
  void AddTasks(const Unit& unit, const WeightPiece::Source& source);
  void Prefetch(size_t task) const;
  void Work(int thread);
  bool Take(size_t* index) REQUIRES(mutex_);
  absl::Status Do(const Task& task, RowPacker& packer) const;
  void Finish(size_t index, const absl::Status& status) REQUIRES(mutex_);
  void Fail(size_t index, const absl::Status& status) REQUIRES(mutex_);
  bool MayCopy() const REQUIRES(mutex_);
  void CopyNext();
  void Report();
  bool Over(int thread) const REQUIRES(mutex_);
  uint8_t* StagingOf(size_t portion) const { return staging_[portion % kStagingBuffers].data(); }

  const Checkpoint& checkpoint_;
  Stream& stream_;
  const ByteProgress& progress_;
  const LoadLimits limits_;
  const size_t prefetch_tasks_;
  const bool uploads_;
  std::vector<Task> tasks_;
  std::vector<DeviceBuffer> staging_;
  int64_t bytes_total_ = 0;
  int64_t bytes_reported_ = 0;  // of the main thread

  Mutex mutex_;
  CondVar changed_;
  std::vector<Portion> portions_;           // what changes of it: guarded by mutex_
  size_t next_ GUARDED_BY(mutex_) = 0;      // task
  size_t copied_ GUARDED_BY(mutex_) = 0;    // portions that were given to the device
  size_t released_ GUARDED_BY(mutex_) = 0;  // portions that the device has
  int64_t bytes_done_ GUARDED_BY(mutex_) = 0;
  size_t failed_at_ GUARDED_BY(mutex_) = 0;
  absl::Status status_ GUARDED_BY(mutex_);
  LoadTimes times_ GUARDED_BY(mutex_);
};

void Pipeline::Add(const WeightPiece& piece, bool together) {
  if (piece.bytes == 0) return;
  times_.held_bytes += piece.bytes;
  for (const Unit& unit : UnitsOf(piece, checkpoint_.spec().head_dim, limits_.staging_bytes)) {
    if (uploads_) Place(unit, together);
    for (const WeightPiece::Source& source : piece.sources) AddTasks(unit, source);
  }
}

// Into the portion before, if it continues it, or into a new one.
void Pipeline::Place(const Unit& unit, bool together) {
  Portion* last = portions_.empty() ? nullptr : &portions_.back();
  int64_t gap = -1;
  if (last != nullptr) gap = unit.memory - (last->device + last->bytes);
  const bool continues = together && last != nullptr && last->layer == unit.piece->layer &&
                         gap >= 0 && gap < kDevicePieceAlignment &&
                         last->bytes + gap + unit.bytes <= limits_.staging_bytes;
  if (!continues) {
    portions_.emplace_back();
    last = &portions_.back();
    last->layer = unit.piece->layer;
    last->device = unit.memory;
    gap = 0;
  }
  if (gap > 0) last->gaps.push_back({last->bytes, last->bytes + gap});
  last->bytes += gap + unit.bytes;
  // The numbers behind the rows are fewer than their bytes.
  if (!unit.piece->vector && !CudaMatrixIsRows(unit.piece->shape.dtype)) {
    last->gaps.push_back({last->bytes - kCudaRowAlignment, last->bytes});
  }
}

// Of the rows of `source`, those that are the unit's.
void Pipeline::AddTasks(const Unit& unit, const WeightPiece::Source& source) {
  const WeightItem& item = *source.item;
  Task task = {unit.piece,        &item,       0, item.rows(), source.first_row - unit.first_row,
               unit.piece->shape, unit.memory, 0};
  task.shape.rows = unit.rows;
  task.portion = uploads_ ? portions_.size() - 1 : 0;
  const auto add = [&] {
    bytes_total_ += ReadBytesOf(task);
    if (uploads_) ++portions_.back().tasks_left;
    tasks_.push_back(task);
  };
  if (unit.piece->vector) return add();
  const RowPacker packer(checkpoint_, limits_.pack);
  const int64_t end = std::min(item.rows(), unit.first_row + unit.rows - source.first_row);
  int64_t row = std::max<int64_t>(0, unit.first_row - source.first_row);
  while (row < end) {
    int64_t count = packer.Step(item, row, end - row);
    // Threads meet at the edge of a panel where they can.
    const int64_t beyond = (source.first_row + row + count) % kRowsOfAPanel;
    if (unit.piece->shape.panels && count > beyond && row + count < end &&
        (count - beyond) % item.RowUnit(checkpoint_.spec().head_dim) == 0) {
      count -= beyond;
    }
    task.begin = row;
    task.count = count;
    add();
    row += count;
  }
}

void Pipeline::Prefetch(size_t index) const {
  if (index >= tasks_.size()) return;
  const Task& task = tasks_[index];
  const WeightItem& item = *task.item;
  if (!item.binding->transposed) {
    const int64_t offset = item.TensorRow(task.begin) * item.row_bytes();
    checkpoint_.Prefetch(*item.tensor, offset,
                         std::min(ReadBytesOf(task), item.tensor->bytes - offset));
  } else if (task.begin == 0) {
    // Every task reads a stripe of all rows.
    checkpoint_.Prefetch(*item.tensor, 0, item.tensor->bytes);
  }
}

bool Pipeline::Take(size_t* index) {
  if (!status_.ok() || next_ == tasks_.size()) return false;
  if (uploads_) {
    const size_t at = tasks_[next_].portion;
    if (at >= released_ + kStagingBuffers) return false;
    Portion& portion = portions_[at];
    for (const Range& gap : portion.gaps) {
      if (!portion.begun) std::memset(StagingOf(at) + gap.begin, 0, gap.size());
    }
    portion.begun = true;
  }
  *index = next_++;
  return true;
}

absl::Status Pipeline::Do(const Task& task, RowPacker& packer) const {
  PackTarget target;
  target.shape = task.shape;
  target.image = task.memory;
  target.first_row = task.first_row;
  target.cleared = !uploads_;
  if (uploads_) {
    target.image = StagingOf(task.portion) + (task.memory - portions_[task.portion].device);
  }
  if (!task.piece->vector) return packer.PackRows(*task.item, task.begin, task.count, target);
  auto* values = reinterpret_cast<float*>(target.image) + task.first_row;
  return packer.PackVector(*task.item, task.piece->plus_one, values);
}

void Pipeline::Fail(size_t index, const absl::Status& status) {
  // Tasks are taken in order: those before this one are done or will still say what they found.
  if (!status_.ok() && failed_at_ <= index) return;
  failed_at_ = index;
  status_ = status;
}

void Pipeline::Finish(size_t index, const absl::Status& status) {
  if (!status.ok()) Fail(index, status);
  bytes_done_ += ReadBytesOf(tasks_[index]);
  if (uploads_) --portions_[tasks_[index].portion].tasks_left;
  changed_.NotifyAll();
}

bool Pipeline::MayCopy() const {
  return status_.ok() && copied_ < portions_.size() && portions_[copied_].tasks_left == 0;
}

// Of the main thread alone.
void Pipeline::CopyNext() {
  size_t at;
  {
    MutexLock lock(mutex_);
    at = copied_;
  }
  const Clock::time_point begin = Clock::now();
  const Portion& portion = portions_[at];
  // The portion before is on the device now, and its buffer free.
  const absl::Status status = stream_.Synchronize();
  if (status.ok()) stream_.CopyToDevice(portion.device, StagingOf(at), portion.bytes);
  MutexLock lock(mutex_);
  times_.copy += std::chrono::duration<double>(Clock::now() - begin).count();
  if (status.ok()) {
    ++times_.copies;
    released_ = at;
    copied_ = at + 1;
  } else {
    Fail(0, status);
  }
  changed_.NotifyAll();
}

// Of the main thread alone.
void Pipeline::Report() {
  int64_t done;
  {
    MutexLock lock(mutex_);
    done = bytes_done_;
  }
  if (!progress_ || done == bytes_reported_) return;
  bytes_reported_ = done;
  progress_(done, bytes_total_);
}

bool Pipeline::Over(int thread) const {
  if (!status_.ok()) return true;
  return next_ == tasks_.size() && (thread != 0 || copied_ == portions_.size());
}

void Pipeline::Work(int thread) {
  RowPacker packer(checkpoint_, limits_.pack);
  double waited = 0;
  while (true) {
    if (thread == 0) Report();
    bool copies = false, takes = false;
    size_t index = 0;
    {
      MutexLock lock(mutex_);
      copies = thread == 0 && MayCopy();
      takes = !copies && Take(&index);
      if (!copies && !takes) {
        if (Over(thread)) break;
        const Clock::time_point begin = Clock::now();
        changed_.Wait(mutex_);
        waited += std::chrono::duration<double>(Clock::now() - begin).count();
      }
    }
    if (copies) CopyNext();
    if (!takes) continue;
    Prefetch(index + prefetch_tasks_);
    const absl::Status status = Do(tasks_[index], packer);
    MutexLock lock(mutex_);
    Finish(index, status);
  }
  MutexLock lock(mutex_);
  times_.read += packer.times().read;
  times_.convert += packer.times().convert;
  times_.wait += waited;
}

absl::StatusOr<LoadTimes> Pipeline::Run() {
  const Clock::time_point begin = Clock::now();
  int64_t largest = 0;
  for (const Portion& portion : portions_) largest = std::max(largest, portion.bytes);
  for (size_t i = 0; i < std::min<size_t>(kStagingBuffers, portions_.size()); ++i) {
    staging_.emplace_back(stream_, largest, Place::kPinned);
    times_.staging_bytes += largest;
  }
  RETURN_IF_ERROR(stream_.Synchronize());
  for (size_t i = 0; i < prefetch_tasks_; ++i) Prefetch(i);
  ThreadPool& pool = stream_.host().pool();
  pool.Run([this](int thread) { Work(thread); });
  Report();
  // Also after an error: staging goes, and copies read it.
  const absl::Status copied = stream_.Synchronize();
  MutexLock lock(mutex_);
  if (!copied.ok()) {
    // Of the portion that was copied last.
    const int64_t layer = copied_ == 0 ? -1 : portions_[copied_ - 1].layer;
    return Prefixed(copied,
                    ToStd(absl::StrCat("uploading the weights",
                                       layer < 0 ? "" : absl::StrCat(" of layer ", layer))));
  }
  RETURN_IF_ERROR(status_);
  times_.total = std::chrono::duration<double>(Clock::now() - begin).count();
  times_.threads = pool.threads();
  times_.read_bytes = bytes_total_;
  return times_;
}

}  // namespace

std::string LoadTimes::ToString() const {
  std::string text = absl::StrFormat(
      "%.1f MiB read in %.3f s, %.2f GB/s, by %d threads; thread-seconds: read %.3f, convert %.3f, "
      "copy %.3f, wait %.3f",
      static_cast<double>(read_bytes) / (1 << 20), total,
      total > 0 ? static_cast<double>(read_bytes) / 1e9 / total : 0.0, threads, read, convert, copy,
      wait);
  if (copies > 0) {
    absl::StrAppendFormat(&text, "; %d copies to the device through %.1f MiB of pinned memory",
                          copies, static_cast<double>(staging_bytes) / (1 << 20));
  }
  return text;
}

absl::StatusOr<LoadTimes> LoadPieces(const Checkpoint& checkpoint, const StagePieces& stage,
                                     Stream& stream, const ByteProgress& progress,
                                     const LoadLimits& limits) {
  Pipeline pipeline(checkpoint, stream, progress, limits);
  for (const WeightPiece& piece : stage.pieces) pipeline.Add(piece, stage.together);
  return pipeline.Run();
}

}  // namespace pergola

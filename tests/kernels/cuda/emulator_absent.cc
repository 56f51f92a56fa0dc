// Stands in for the emulator's settings in tests that run on a GPU, which has an order of its own
// and defers all work.
#include "kernels/cuda/emulator/emulator.h"

namespace pergola::emulator {

void SetOrder(Order /*order*/, uint64_t /*seed*/) {}
void SetDeferred(bool /*deferred*/) {}
void SetDeviceModel(const DeviceModel& /*model*/) {}
DeviceModel GetDeviceModel() {
  return {};
}

}  // namespace pergola::emulator

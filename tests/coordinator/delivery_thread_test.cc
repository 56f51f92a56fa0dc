#include "coordinator/doors/delivery_thread.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

class Receiver : public MailReceiver {
 public:
  explicit Receiver(std::function<void()> on_mail) : on_mail_(std::move(on_mail)) {}
  void TakeMail() override { on_mail_(); }

 private:
  const std::function<void()> on_mail_;
};

std::shared_ptr<MailReceiver> MakeReceiver(std::function<void()> on_mail) {
  return std::make_shared<Receiver>(std::move(on_mail));
}

TEST(DeliveryThreadTest, ServesEachOnceInOrder) {
  std::vector<int> served;  // on the delivery thread, read after Stop
  DeliveryThread delivery;
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(delivery.Post(MakeReceiver([&served, i] { served.push_back(i); })));
  }
  delivery.Stop();
  ASSERT_EQ(served.size(), 100U);
  EXPECT_TRUE(std::is_sorted(served.begin(), served.end()));
}

TEST(DeliveryThreadTest, RestsInProportionToItsWork) {
  constexpr std::chrono::milliseconds kWork{3};
  DeliveryThread delivery;
  std::atomic<bool> worked{false};
  Clock::time_point end_of_work;
  delivery.Post(MakeReceiver([&] {
    std::this_thread::sleep_for(kWork);
    end_of_work = Clock::now();
    worked = true;
  }));
  while (!worked) std::this_thread::yield();
  std::atomic<bool> second{false};
  Clock::time_point begin_of_second;
  delivery.Post(MakeReceiver([&] {
    begin_of_second = Clock::now();
    second = true;
  }));
  while (!second) std::this_thread::yield();
  EXPECT_GE(begin_of_second - end_of_work, DeliveryThread::kRestFactor * kWork);
}

TEST(DeliveryThreadTest, StoppingEndsARestAndServesWhoWaits) {
  DeliveryThread delivery;
  std::atomic<int> served{0};
  delivery.Post(MakeReceiver([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ++served;
  }));
  while (served == 0) std::this_thread::yield();
  delivery.Post(MakeReceiver([&] { ++served; }));
  delivery.Stop();
  EXPECT_EQ(served, 2);
  EXPECT_FALSE(delivery.Post(MakeReceiver([&] { ++served; })));
  delivery.Stop();
  EXPECT_EQ(served, 2);
}

TEST(DeliveryThreadTest, LetsGoOfAReceiverBeforeItRests) {
  DeliveryThread delivery;
  auto receiver = MakeReceiver([] {});
  const std::weak_ptr<MailReceiver> weak = receiver;
  delivery.Post(std::move(receiver));
  while (!weak.expired()) std::this_thread::yield();
}

}  // namespace
}  // namespace pergola

# Ranks on emulated GPUs that fail, are killed, or have too little memory. shellcheck shell=bash

# `up` starts the worker that lies beside it.
use_emulated_gpus() {  # COUNT
  mkdir "$work/bin"
  cp "$real_bin/pergola" "$real_bin/pergola-coordinator" "$work/bin"
  cp "$real_bin/pergola-worker-emulated" "$work/bin/pergola-worker"
  bin=$work/bin
  export PERGOLA_EMULATED_GPUS=$1 PERGOLA_EMULATED_FAILURE=$work/failure
}
# The next process with that device takes it: kernels/cuda/emulator/emulator.h, FailCall.
fail_on_device() {  # DEVICE CALL PASSED ERROR
  echo "$*" >"$work/failure.new"
  mv "$work/failure.new" "$work/failure"
}
start_two_gpus() {
  use_emulated_gpus 2
  start_up "$model" --tp 2 --threads 1 --device cuda --worker-arg=--activation-dtype=f32 \
    --worker-arg=--kv-dtype=f32 --worker-arg=--peer-sum-bytes=0 "$@"
  wait_ready
}
through_nccl() {
  [[ $(grep -c 'NCCL took' "$work/up.err") -eq 2 ]] || fail "the ranks do not exchange through NCCL"
}
generate() { pergola generate --ignore-eos --max-new-tokens 100 --resume-timeout-ms "${patience_ms:-120000}" 'Columns and beams'; }
rank_pid() { status "s['groups'][0]['layout']['stages'][0]['pids'][$1]"; }
begin_stream() {
  : >"$work/disturbed"
  generate >"$work/disturbed" 2>"$work/disturbed.err" &
  stream=$!
  eventually 60 test -s "$work/disturbed" || fail "no text after 60 s"
}
group_ended() { grep -q 'the group ended with' "$work/up.err"; }
# The group ends within SECONDS, is started again, and the stream goes on as if nothing had been.
stream_survives() {  # SECONDS
  eventually "$1" group_ended || fail "the group has not ended within $1 s"
  [[ $(stat -c %s "$work/disturbed") -lt $(stat -c %s "$work/undisturbed") ]] || fail "the stream was over before"
  wait "$stream" || fail "the stream ended with code $?: $(cat "$work/disturbed.err")"
  cmp "$work/undisturbed" "$work/disturbed" || fail "the stream differs from the undisturbed one"
  wait_ready 2
  kill -TERM "$up"
  ends_with 0 45
}

# An error of one rank's device names rank, device, op and CUDA's words.
case_gpu_fault() {
  start_two_gpus
  through_nccl
  generate >"$work/undisturbed"
  begin_stream
  fail_on_device 1 copy 3 700
  stream_survives 20
  grep -q 'rank 1, stage 0, .*: step: plan [0-9]*: CUDA device 1: cop.*: an illegal memory access .*(cudaErrorIllegalAddress)' \
    "$work/up.err" || fail "no line names rank, device, op and error"
}

# The plan under way is the last, so rank 0 waits for a device that waits for rank 1's: that rank tells by itself.
case_gpu_last() {
  start_two_gpus
  through_nccl
  generate >/dev/null
  pergola generate --max-new-tokens 1 'Columns and beams' >"$work/undisturbed"
  fail_on_device 1 copy 1 719
  pergola generate --max-new-tokens 1 --resume-timeout-ms 120000 'Columns and beams' >"$work/disturbed" &
  stream=$!
  # Long before the coordinator (60 s) or a watchdog.
  eventually 20 group_ended || fail "the group has not ended"
  grep -q 'rank 1, stage 0, .*: step: plan [0-9]*: .*CUDA device 1: .* (cudaErrorLaunchFailure)' "$work/up.err" ||
    fail "no line names rank, device and error"
  wait "$stream" || fail "the stream ended with code $?"
  cmp "$work/undisturbed" "$work/disturbed" || fail "the stream differs from the undisturbed one"
  kill -TERM "$up"
  ends_with 0 45
}

# A group that cannot come back: the client is told that another try may do.
case_gpu_lost() {
  local patience_ms=2000
  start_two_gpus --worker-arg=--collectives=host
  begin_stream
  fail_on_device 1 launch 40 719
  eventually 20 group_ended || fail "the group has not ended"
  grep -q 'rank 1, stage 0, .*: step: plan [0-9]*: .*CUDA device 1: .*: launch of .* (cudaErrorLaunchFailure)' "$work/up.err" ||
    fail "no line names rank, device, op and error"
  fail_on_device 1 malloc 0 2
  local code=0
  wait "$stream" || code=$?
  [[ $code -ne 0 ]] || fail "the stream ended well without a group"
  grep -q 'UNAVAILABLE' "$work/disturbed.err" || fail "the client is told: $(cat "$work/disturbed.err")"
  ends_with 2 45
  grep -q 'the group cannot start .*the rank needs weights .*: CUDA device 1: reserving [0-9]* bytes: out of memory' \
    "$work/up.err" || fail "nothing says why the group cannot start"
}

# Killed while the other rank is inside a collective: mpirun ends that one.
case_gpu_killed() {
  start_two_gpus
  through_nccl
  generate >"$work/undisturbed"
  begin_stream
  local victim other
  victim=$(rank_pid 1)
  other=$(rank_pid 0)
  kill -STOP "$victim"
  sleep 1  # by then rank 0 waits for it in a sum
  kill -KILL "$victim"
  eventually 10 gone "$other" || fail "rank 0 outlives rank 1"
  stream_survives 10
}

# Stopped for good: nobody notices but the watchdog.
case_gpu_stopped() {
  start_two_gpus --worker-arg=--step-timeout-ms=1500
  through_nccl
  generate >"$work/undisturbed"
  begin_stream
  local victim
  victim=$(rank_pid 1)
  kill -STOP "$victim"
  stream_survives 30
  grep -q 'overdue: GPU work of plan [0-9]*, for [0-9]* ms (the limit is 8000 ms)' "$work/up.err" ||
    fail "the watchdog said nothing"
  grep -q 'rank 0, stage 0, .*: GPU work of plan: ' "$work/up.err" || fail "the coordinator was not told"
  gone "$victim" || fail "the stopped rank is left"
}

# What lacks is told with the plan, before a weight is read.
case_gpu_memory() {
  use_emulated_gpus 2
  export PERGOLA_EMULATED_GPU_BYTES=30000000
  refused 'CUDA device 0: with one block of KV cache a rank needs weights .* = .* on the device, .* too few; ' \
    "$model" --tp 2 --device cuda
  unset PERGOLA_EMULATED_GPU_BYTES
  # The first allocation is the plan's.
  fail_on_device 0 malloc 0 2
  refused 'the rank needs weights .* on the device, .*: CUDA device 0: reserving [0-9]* bytes: out of memory' \
    "$model" --device cuda
}

# No device that can be used.
case_gpu_none() {
  use_emulated_gpus 0
  refused 'this machine has no CUDA device' "$model" --device cuda
  export PERGOLA_EMULATED_GPUS=1 PERGOLA_EMULATED_DRIVER=12040
  refused 'the NVIDIA driver supports CUDA 12.4; this program needs 13.0: install a newer driver' "$model" --device cuda
  # Where nobody asked for one the CPU serves, and the log says why.
  start_up "$model" --threads 1
  wait_ready
  grep -q 'rank 0 computes on the CPU: the NVIDIA driver supports CUDA 12.4' "$work/up.err" || fail "nothing says why"
  kill -TERM "$up"
  ends_with 0 45
}

#!/usr/bin/env bash
# End-to-end cases of the pergola command on one machine: real processes, mpirun, gRPC on the loopback.
# Usage: run.sh BIN_DIR CASE. Exit code 77 is a skip. "fake_*" cases put scripts in place of coordinator and mpirun.
set -euo pipefail
real_bin=$(readlink -f "$1")
case=$2
root=$(readlink -f "$(dirname "${BASH_SOURCE[0]}")/../..")
model=$root/tests/golden/tiny_text
work=$(mktemp -d /tmp/pergola-e2e.XXXXXX)
bin=$real_bin
up=
# Every process started below inherits this, so what is left behind can be found.
export XDG_RUNTIME_DIR=$work/run
mkdir -m 0700 "$XDG_RUNTIME_DIR"
run_file=$XDG_RUNTIME_DIR/pergola/run.json

fail() { echo "FAIL: $*" >&2; exit 1; }

# "PID command" of every process that inherited our directory, zombies left out (their environment is empty).
left_behind() {
  local file pid
  for file in $(env -u XDG_RUNTIME_DIR grep -lszx "XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR" /proc/[0-9]*/environ); do
    pid=${file#/proc/}
    pid=${pid%/environ}
    echo "$pid $(cut -c1-80 "/proc/$pid/comm" 2>/dev/null)"
  done
}

finish() {
  local code=$?
  trap - EXIT
  if [[ $code -ne 0 && $code -ne 77 ]]; then
    for log in "$work"/*.err; do echo "== $log"; tail -n 30 "$log"; done >&2 || true
  fi
  [[ -z $up ]] || kill -KILL "$up" 2>/dev/null || true
  left_behind | while read -r pid _; do kill -KILL "$pid" 2>/dev/null || true; done
  rm -rf "$work"
  exit "$code"
}
trap finish EXIT

pergola() { "$bin/pergola" "$@"; }
field() { python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$run_file" "$1"; }
group_pid() {  # NUMBER: of its mpirun
  python3 -c 'import json,sys; print(json.load(open(sys.argv[1]))["groups"][int(sys.argv[2])]["mpirun_pid"])' \
    "$run_file" "$1"
}
status() { pergola status --json | python3 -c "import json,sys; s=json.load(sys.stdin); print($1)"; }

# eventually SECONDS COMMAND...: until it succeeds.
eventually() {
  local until=$((SECONDS + $1))
  shift
  until "$@"; do
    [[ $SECONDS -lt $until ]] || return 1
    sleep 0.05
  done
}

# start_up ARGUMENTS...: in the background; output in up.out and up.err.
start_up() {
  : >"$work/up.out"  # the child empties it some time later, and until then it holds the last READY
  "$bin/pergola" up --listen 127.0.0.1:0 --internal-listen 127.0.0.1:0 "$@" >"$work/up.out" 2>"$work/up.err" &
  up=$!
}
gone() { ! kill -0 "$1" 2>/dev/null; }
ready_lines() { grep -c '^READY' "$work/up.out" || true; }
ready_at_least() {
  gone "$up" && fail "'pergola up' ended before it was READY"
  [[ $(ready_lines) -ge $1 ]]
}
wait_ready() { eventually 120 ready_at_least "${1:-1}" || fail "not READY (line ${1:-1}) after 120 s"; }

# ends_with CODE SECONDS: `up` ends by itself, with this exit code, and leaves nothing behind.
ends_with() {
  local code=0 left
  eventually "$2" gone "$up" || fail "'pergola up' has not ended within $2 s"
  wait "$up" || code=$?
  up=
  [[ $code -eq $1 ]] || fail "'pergola up' ended with $code, not with $1"
  eventually 5 nothing_left || fail "left behind: $(left_behind)"
  [[ ! -e $run_file ]] || fail "the run file is still there"
  left=$(ls "$XDG_RUNTIME_DIR/pergola" 2>/dev/null || true)
  [[ -z $left ]] || fail "files left behind: $left"
}
nothing_left() { [[ -z $(left_behind) ]]; }

# refused PATTERN ARGUMENTS...: `up` ends with code 2 and says why.
refused() {
  local pattern=$1
  shift
  start_up "$@"
  ends_with 2 30
  grep -q -- "$pattern" "$work/up.err" || fail "no line with '$pattern'"
}

# --- with scripts in place of coordinator and mpirun ---

use_fakes() {
  mkdir "$work/bin" "$work/path"
  cp "$real_bin/pergola" "$work/bin/pergola"
  # Says where it listens, then waits for its end.
  cat >"$work/bin/pergola-coordinator" <<'EOF'
#!/bin/bash
while [[ $# -gt 0 ]]; do
  [[ $1 == --run-file ]] && file=$2
  [[ $1 == --listen ]] && listen=$2
  shift
done
echo "listen $listen" >>"$WORK/listens"
[[ $listen == *:0 ]] && listen=127.0.0.1:9
printf '{"pid": %d, "public_address": "%s", "internal_address": "127.0.0.1:9"}' $$ "$listen" >"$file.new"
mv "$file.new" "$file"
trap 'exit 0' TERM
while :; do sleep 0.05; done
EOF
  printf '#!/bin/sh\n' >"$work/bin/pergola-worker"
  cat >"$work/path/mpirun" <<'EOF'
#!/bin/bash
echo "$$ ${PERGOLA_JOIN_TOKEN:+token} $*" >>"$WORK/launches"
[[ ! -f $WORK/fail_with ]] || { echo "the worker says why" >&2; exit "$(cat "$WORK/fail_with")"; }
exec sleep 600
EOF
  chmod +x "$work/bin/"* "$work/path/mpirun"
  export WORK=$work PATH=$work/path:$PATH
  bin=$work/bin
}
launches() { cat "$work/launches" 2>/dev/null | wc -l; }
launched_at_least() { [[ $(launches) -ge $1 ]]; }

case_fake_lifecycle() {
  use_fakes
  start_up "$model" --tp 2 --pp 2
  eventually 10 launched_at_least 1 || fail "mpirun was not started"
  eventually 5 test -s "$run_file" || fail "no run file"
  [[ $(stat -c %a "$run_file") == 600 ]] || fail "the run file has mode $(stat -c %a "$run_file")"
  local token_file
  token_file=$(field token_file)
  [[ $(stat -c %a "$token_file") == 600 ]] || fail "the token file has mode $(stat -c %a "$token_file")"
  [[ $(stat -c %a "$(dirname "$token_file")") == 700 ]] || fail "the token's directory is open"
  grep -q ' token .*-n 4 .*-x PERGOLA_JOIN_TOKEN ' "$work/launches" || fail "the token is not in the environment"
  ! grep -rqF "$(cat "$token_file")" "$work/launches" "$work/up.err" "$work/up.out" || fail "the token was shown"
  ! tr '\0' '\n' <"/proc/$(field coordinator_pid)/cmdline" | grep -qxF "$(cat "$token_file")" || fail "token in cmdline"
  kill -TERM "$up"
  ends_with 0 15
}

case_fake_relaunch() {
  use_fakes
  start_up "$model"
  eventually 10 launched_at_least 1 || fail "mpirun was not started"
  kill -KILL "$(group_pid 0)"
  eventually 10 launched_at_least 2 || fail "mpirun was not started again"
  local before
  before=$(field coordinator_pid)
  kill -KILL "$before"
  other() { local now; now=$(field coordinator_pid); [[ $now != 0 && $now != "$before" ]]; }
  eventually 10 other || fail "the coordinator was not started again"
  # The second one must take the port that the first one chose.
  [[ $(tail -1 "$work/listens") == "listen 127.0.0.1:9" ]] || fail "another port: $(tail -1 "$work/listens")"
  [[ $(launches) -eq 2 ]] || fail "the group must survive its coordinator; launches: $(launches)"
  kill -INT "$up"
  ends_with 0 15
}

# One group is started again; the other's process stays.
case_fake_groups() {
  use_fakes
  start_up "$model" --groups 2 --tp 2
  eventually 10 launched_at_least 2 || fail "mpirun was not started twice"
  local name first second
  for name in group-0 group-1; do
    grep -q -- "--group $name .*--threads [1-9]" "$work/launches" || fail "no $name, or it has no threads"
  done
  both() { [[ $(group_pid 0) -gt 0 && $(group_pid 1) -gt 0 ]]; }
  eventually 5 both || fail "the run file does not name both groups"
  first=$(group_pid 0)
  second=$(group_pid 1)
  kill -KILL "$second"
  again() { local now; now=$(group_pid 1); [[ $now != 0 && $now != "$second" ]]; }
  eventually 10 again || fail "group-1 was not started again"
  eventually 10 launched_at_least 3 || fail "group-1's mpirun did not run again"
  [[ $(group_pid 0) == "$first" ]] && kill -0 "$first" || fail "group-0 was touched"
  [[ $(launches) -eq 3 ]] || fail "launches: $(launches)"
  grep -q 'group-1 ended with signal 9' "$work/up.err" || fail "no line says that group-1 ended"
  kill -TERM "$up"
  ends_with 0 15
}

case_fake_usage_error() {
  use_fakes
  echo 2 >"$work/fail_with"
  start_up "$model"
  ends_with 2 15
  [[ $(launches) -eq 1 ]] || fail "a usage error must not be retried; launches: $(launches)"
  grep -q 'the group cannot start (exit code 2): the worker says why' "$work/up.err" || fail "no reason"
}

case_fake_never_healthy() {
  use_fakes
  echo 130 >"$work/fail_with"
  start_up "$model"
  ends_with 1 30
  [[ $(launches) -eq 5 ]] || fail "a group that never came up is started 5 times, not $(launches)"
}

case_fake_drained() {
  use_fakes
  start_up "$model"
  eventually 10 launched_at_least 1 || fail "mpirun was not started"
  kill -TERM "$(field coordinator_pid)"
  ends_with 0 15
}

case_fake_killed() {
  use_fakes
  start_up "$model"
  eventually 10 launched_at_least 1 || fail "mpirun was not started"
  kill -KILL "$up"
  wait "$up" 2>/dev/null || true
  up=
  eventually 10 nothing_left || fail "children outlive a killed 'up': $(left_behind)"
  # What the killed one left must not hinder the next.
  start_up "$model"
  eventually 10 launched_at_least 2 || fail "a stale run file hinders the next start"
  kill -TERM "$up"
  eventually 15 gone "$up" || fail "not ended"
  wait "$up" || fail "exit code $?"
  up=
}

case_fake_twice() {
  use_fakes
  start_up "$model"
  eventually 10 test -s "$run_file" || fail "no run file"
  local code=0
  pergola up "$model" 2>"$work/second.err" || code=$?
  [[ $code -eq 2 ]] || fail "the second 'up' ended with $code"
  grep -q 'runs already' "$work/second.err" || fail "the second 'up' does not say why"
  kill -TERM "$up"
  ends_with 0 15
}

# --- flags and files ---

expect_usage() {  # PATTERN COMMAND...: code 2, one line with PATTERN, nothing on standard output
  local pattern=$1 code=0
  shift
  "$bin/pergola" "$@" >"$work/usage.out" 2>"$work/usage.err" || code=$?
  [[ $code -eq 2 ]] || fail "'pergola $*' ended with $code"
  grep -q -- "$pattern" "$work/usage.err" || fail "'pergola $*' does not say '$pattern'"
  [[ ! -s $work/usage.out ]] || fail "'pergola $*' wrote to standard output"
}

case_usage() {
  use_fakes
  expect_usage 'groups 3 does not divide the 2 hosts' up "$model" --groups 3 --pp 2 --hosts a:8,b:8 \
    --internal-listen 127.0.0.1:0
  expect_usage 'groups 17: must be 1 to 16' up "$model" --groups 17
  expect_usage 'needs --watch' status --interval-ms 500
  expect_usage 'needs --json' generate --logprobs 2 hello
  expect_usage 'does-not-exist' up "$work/does-not-exist"
  expect_usage '--pp 3 is not a multiple of the 2 hosts' up "$model" --pp 3 --hosts a:8,b:8 --internal-listen 127.0.0.1:0
  expect_usage 'host b has 1 slots' up "$model" --tp 2 --pp 2 --hosts a:2,b:1 --internal-listen 127.0.0.1:0
  expect_usage '--tp 0' up "$model" --tp 0
  expect_usage 'a:x' up "$model" --hosts a:x
  expect_usage '65536' up "$model" --listen 127.0.0.1:65536
  expect_usage '--http-listen.*9400' up "$model" --http-listen 9400
  expect_usage 'nowhere.invalid' up "$model" --hosts nowhere.invalid:1
  expect_usage 'no pergola is running' status
  expect_usage 'no pergola is running' drain
  expect_usage 'no pergola is running' generate hello
  expect_usage 'belong together' status --connect-internal 127.0.0.1:1
  expect_usage 'not valid UTF-8 at byte 2' generate --connect 127.0.0.1:1 $'ab\xff'
  expect_usage 'max-new-tokens' generate --max-new-tokens -1 hello
  expect_usage 'subcommand' 
  local code=0
  pergola generate --connect 127.0.0.1:9 hello >"$work/g.out" 2>"$work/g.err" || code=$?
  [[ $code -eq 1 && ! -s $work/g.out ]] || fail "no server: code $code"
  grep -q '127.0.0.1:9: UNAVAILABLE' "$work/g.err" || fail "no server: $(cat "$work/g.err")"
  local line
  line=$(pergola up "$model" --tp 2 --pp 2 --hosts a:4,b:4 --internal-listen 10.0.0.1:7000 --dry-run)
  [[ $line == *'-n 4 '*'--host a:2,b:2 --map-by slot'*'--coordinator 10.0.0.1:7000'* ]] || fail "dry run: $line"
  nothing_left || fail "a dry run started something"
  local nothing=$work/nothing
  mkdir "$nothing"
  local missing=0
  PATH=$nothing "$bin/pergola" up "$model" 2>"$work/missing.err" || missing=$?
  [[ $missing -eq 2 ]] || fail "mpirun missing: code $missing"
  grep -q "no program 'mpirun'.*openmpi-bin" "$work/missing.err" || fail "mpirun missing: $(cat "$work/missing.err")"
  for command in up generate status drain bench; do
    pergola "$command" --help >"$work/help" || fail "$command --help"
    grep -qi default "$work/help" || fail "$command --help names no default"
  done
}

# --- with the real programs ---

case_basic() {
  start_up "$model" --tp 2 --pp 1 --threads 1 --trace "$work/trace"
  wait_ready
  pergola generate --max-new-tokens 24 'The columns carry' >"$work/one"
  printf 'The columns carry' | pergola generate --max-new-tokens 24 - >"$work/two"
  [[ -s $work/one ]] || fail "no text"
  cmp "$work/one" "$work/two" || fail "the prompt from standard input gives another text"
  pergola generate --max-new-tokens 24 --json 'The columns carry' >"$work/json"
  python3 - "$work/json" "$work/one" <<'EOF' || fail "the JSON lines do not add up to the text"
import json, sys
messages = [json.loads(line) for line in open(sys.argv[1])]
assert "".join(m.get("text", "") for m in messages).encode() == open(sys.argv[2], "rb").read()
assert "finish" in messages[-1] and not any("finish" in m for m in messages[:-1])
EOF
  pergola status >"$work/status"
  grep -q 'serving' "$work/status" || fail "status: $(cat "$work/status")"
  [[ $(status "len(s['groups'][0]['layout']['stages'][0]['pids'])") == 2 ]] || fail "status names no 2 pids"
  pergola bench --streams 2 --prompt-tokens 8 --output-tokens 8 --requests 4 --json "$work/bench.json"
  python3 -c 'import json,sys; b=json.load(open(sys.argv[1])); assert b["failed"]==0 and b["tokens"]==32' \
    "$work/bench.json" || fail "bench: $(cat "$work/bench.json")"
  local code=0
  pergola generate --top-k 4000000 x >"$work/out" 2>"$work/error" || code=$?
  [[ $code -eq 2 ]] || fail "a top_k beyond the vocabulary ends with $code"
  grep -q 'sampling.top_k' "$work/error" || fail "no field path: $(cat "$work/error")"
  echo wrong >"$work/wrong"
  code=0
  pergola status --connect-internal "$(field internal_address)" --join-token-file "$work/wrong" 2>"$work/error" || code=$?
  [[ $code -eq 1 ]] || fail "a wrong join token ends with $code"
  grep -q 'UNAUTHENTICATED\|PERMISSION_DENIED' "$work/error" || fail "wrong token: $(cat "$work/error")"
  pergola drain --timeout-ms 5000 >"$work/drain"
  grep -q 'drained' "$work/drain" || fail "drain: $(cat "$work/drain")"
  ends_with 0 30
  ls "$work"/trace/coordinator.json "$work"/trace/worker.json* >/dev/null || fail "no traces"
}

# bench_says PYTHON FLAGS...: a run whose JSON, b, fulfils the expression.
bench_says() {
  local expression=$1
  shift
  pergola bench --seed 5 --json "$work/bench.json" "$@" >"$work/bench.out" || fail "bench $*"
  python3 -c "import json,sys; b=json.load(open(sys.argv[1])); assert $expression" "$work/bench.json" ||
    fail "bench $*: $(cat "$work/bench.json")"
}
requests_above() { [[ $(status "s['requests_total']") -gt $1 ]]; }

# Every load of `pergola bench`, its plots, and an interruption.
case_bench() {
  start_up "$model" --threads 1
  wait_ready
  bench_says "b['tokens'] == 24 and b['failed'] == 0" --streams 2 --requests 6 --output-tokens 4
  bench_says "b['completed'] == 20 and b['dropped'] == 0 and b['goodput_share'] == 1" --rate 40 --burst 4 \
    --requests 20 --output-tokens 4 --slo-ttft-ms 60000 --slo-gap-ms 60000 --svg "$work/open"
  bench_says "b['tokens'] == 120 and b['failed'] == 0" --users 3 --think-s 0.1:0.2 --requests 6 --mix
  bench_says "b['completed'] == 2" --lengths sharegpt --streams 2 --requests 2
  local address before bench code=0
  address=$(field public_address)
  bench_says "[a['sent'] for a in b['addresses']] == [2, 2]" --connect "$address,$address" --requests 4 \
    --output-tokens 4
  # So many tokens that the streams of a point meet also on a busy machine.
  pergola bench --sweep --sweep-contexts 8,100000 --sweep-max-batch 128 --sweep-repeats 1 --output-tokens 256 \
    --json "$work/sweep.json" --svg "$work/sweep" >"$work/bench.out" || fail "bench --sweep"
  python3 - "$work" <<'EOF' || fail "sweep: $(cat "$work/sweep.json")"
import json, pathlib, sys
import xml.etree.ElementTree
work = pathlib.Path(sys.argv[1])
points = json.loads((work / "sweep.json").read_text())["points"]
assert points[0]["fits"] and points[0]["step_ms"] > 0, points
# The run file leads to the status, which says how many slots there are.
assert [p["remark"] for p in points if p["batch"] == 128] == ["the server has 64 slots"], points
assert "context length" in points[-1]["remark"], points
plots = sorted(p.name for p in work.glob("*.svg"))
assert plots == ["open-latency.svg", "open-tokens.svg", "sweep-step.svg", "sweep-sweep.svg"], plots
for plot in plots:
    texts = [e.text for e in xml.etree.ElementTree.parse(work / plot).iter() if e.tag.endswith("text")]
    assert len(texts) > 6 and all(texts), (plot, texts)
EOF
  before=$(status "s['requests_total']")
  "$bin/pergola" bench --duration-s 60 --json - >"$work/interrupted.json" 2>"$work/interrupted.err" &
  bench=$!
  eventually 20 requests_above $((before + 2)) || fail "bench does not run"
  kill -INT "$bench"
  wait "$bench" || code=$?
  [[ $code -eq 130 ]] || fail "an interrupted bench ends with $code"
  python3 -c 'import json,sys; b=json.load(open(sys.argv[1])); assert b["interrupted"] and b["failed"] == 0' \
    "$work/interrupted.json" || fail "interrupted: $(cat "$work/interrupted.json" "$work/interrupted.err")"
  kill -TERM "$up"
  ends_with 0 45
}

# Several sequences, log-probabilities and status --watch, against real processes.
case_sequences() {
  start_up "$model" --tp 1 --pp 2 --threads 1
  wait_ready
  local several="--n 2 --seed 7 --temperature 0.8 --max-new-tokens 16 --ignore-eos --tenant team-a"
  # shellcheck disable=SC2086
  pergola generate $several --stats 'The columns carry' >"$work/text" 2>"$work/stats.err"
  grep -q '32 new tokens in 2 sequences' "$work/stats.err" || fail "stats: $(cat "$work/stats.err")"
  # shellcheck disable=SC2086
  pergola generate $several --json --logprobs 3 --prompt-logprobs 2 --echo 'The columns carry' >"$work/json"
  python3 - "$work/json" "$work/text" <<'EOF' || fail "the sequences do not add up"
import json, sys
messages = [json.loads(line) for line in open(sys.argv[1])]
prompt = "The columns carry"
info = messages[0]["info"]
texts = []
for index in (0, 1):
    own = [m for m in messages if m.get("index", 0) == index]
    ids = [i for m in own for i in m.get("ids", [])]
    logprobs = [l for m in own for l in m.get("logprobs", [])]
    assert len(ids) == len(logprobs) == 16, (index, len(ids), len(logprobs))
    for l in logprobs:
        assert l["logprob"] <= 0 and len(l["top_ids"]) == len(l["top_logprobs"]) == 3, l
        assert l["top_logprobs"] == sorted(l["top_logprobs"], reverse=True), l
    assert sum("finish" in m for m in own) == 1 and "finish" in own[-1]
    scores = [l for m in own for l in m.get("prompt_logprobs", [])]
    assert len(scores) == (info["prompt_token_count"] - 1 if index == 0 else 0), len(scores)
    text = "".join(m.get("text", "") for m in own)
    assert text.startswith(prompt), text
    texts.append(text[len(prompt):])
assert texts[0] != texts[1], "both sequences drew the same"
expected = "".join(f"--- {i + 1}\n{t}" + ("" if t.endswith("\n") or not t else "\n") for i, t in enumerate(texts))
actual = open(sys.argv[2], "rb").read().decode()
assert actual == expected, (actual, expected)
EOF
  local code=0
  pergola generate --n 2 x >"$work/out" 2>"$work/error" || code=$?
  [[ $code -eq 2 ]] || fail "several greedy sequences end with $code"
  grep -q 'sampling.n' "$work/error" || fail "no field path: $(cat "$work/error")"
  # Until interrupted, so it is ended from outside; a block's first line ends with the uptime.
  "$bin/pergola" status --watch --interval-ms 100 >"$work/watch" 2>"$work/watch.err" &
  local watch=$!
  three_blocks() { [[ $(grep -c ', up [0-9.]* s$' "$work/watch") -ge 3 ]]; }
  eventually 20 three_blocks || fail "status --watch: $(cat "$work/watch" "$work/watch.err")"
  kill -TERM "$watch"
  wait "$watch" || true
  [[ $(grep -c ' tokens/s, ' "$work/watch") -ge 2 ]] || fail "no rates: $(cat "$work/watch")"
  ! grep -q $'\x1b' "$work/watch" || fail "escape sequences without a terminal"
  kill -TERM "$up"
  ends_with 0 45
}

scrape() {
  python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read().decode(), end="")' \
    "http://$(field http_address)/$1"
}
# metric FILE NAME: its value on that page; 0 if it is not there.
metric() { awk -v name="$2" '$1 == name { value = $2 } END { print value + 0 }' "$work/$1"; }

# Counters of a whole system move with what it serves, and each request is a line of the log.
case_metrics() {
  start_up "$model" --tp 2 --threads 1 --http-listen 127.0.0.1:0
  wait_ready
  local address name want
  address=$(field http_address)
  grep -q "HTTP at $address" "$work/up.err" || fail "no line says where HTTP is"
  [[ $(scrape healthz) == SERVING ]] || fail "healthz: $(scrape healthz)"
  scrape metrics >"$work/before"  # READY came after a request of `up` itself
  pergola generate --n 2 --seed 7 --temperature 0.8 --max-new-tokens 16 --ignore-eos --request-id metrics-1 \
    'The columns carry' >"$work/out"
  ! pergola generate --top-k 4000000 x >"$work/out" 2>"$work/error" || fail "a top_k beyond the vocabulary is taken"
  sleep 0.2  # one picture of the engine serves all who ask within 100 ms
  scrape metrics >"$work/after"
  while read -r name want; do
    grep -qF "$name " "$work/after" || fail "no $name in: $(cat "$work/after")"
    awk -v was="$(metric before "$name")" -v is="$(metric after "$name")" -v want="$want" \
      'BEGIN { exit !(want == "more" ? is > was : is - was == want) }' ||
      fail "$name went from $(metric before "$name") to $(metric after "$name"), not by $want"
  done <<'EOF'
pergola_sequences_accepted_total 2
pergola_sequences_ended_total{status="OK",finish="LENGTH"} 2
pergola_generated_tokens_total 32
pergola_prompt_tokens_total more
pergola_prefix_asked_tokens_total more
pergola_refusals_total{reason="INVALID_REQUEST"} 1
pergola_first_token_seconds_count 2
pergola_token_gap_seconds_count more
pergola_queue_wait_seconds_count 2
pergola_step_seconds_count{group="group-0"} more
pergola_plans_total more
pergola_bad_logits_total 0
pergola_repeated_passes_total 0
EOF
  [[ $(metric after pergola_serving) == 1 && $(metric after pergola_sequences_running) == 0 ]] || fail "not idle"
  [[ $(metric after 'pergola_group_ready{group="group-0"}') == 1 ]] || fail "the group is not ready"
  [[ $(metric after 'pergola_group_blocks{group="group-0"}') -gt 0 ]] || fail "the group has no blocks"
  local line='request id="metrics-1" index=[01] .* new_tokens=16 .* status=OK finish=LENGTH$'
  logged() { [[ $(grep -c "$line" "$work/up.err") -eq 2 ]] && grep -q 'refused count=1 INVALID_REQUEST=1 ' "$work/up.err"; }
  eventually 5 logged || fail "the log does not tell of both sequences and the refusal"
  pergola status >"$work/status"
  grep -q '  first token p50 [0-9.]* p99 [0-9.]* ms, gap p50 [0-9.]* ' "$work/status" || fail "status: $(cat "$work/status")"
  # A coordinator that is started again listens where scrapers look for it.
  kill -KILL "$(field coordinator_pid)"
  wait_ready 2
  [[ $(field http_address) == "$address" && $(scrape healthz) == SERVING ]] || fail "HTTP is at $(field http_address)"
  kill -TERM "$up"
  ends_with 0 45
}

both_serve() { [[ $(status "sum(g['state']=='GROUP_STATE_READY' for g in s['groups'])") == 2 ]]; }

# Two groups: a stream survives the death of the one it runs on, in the other, and equals its undisturbed run.
case_kill_group() {
  start_up "$model" --groups 2 --threads 1
  wait_ready
  eventually 60 both_serve || fail "the second group does not serve"
  pergola status >"$work/status"
  [[ $(grep -c '^group group-[01]: ready' "$work/status") -eq 2 ]] || fail "status: $(cat "$work/status")"
  eventually 10 grep -q '2 of 2 groups serve' "$work/up.err" || fail "no line says that both groups serve"
  local sampling
  for sampling in "" "--temperature 0.8 --seed 7"; do
    # shellcheck disable=SC2086
    generate() { pergola generate --ignore-eos --max-new-tokens 1500 $sampling 'Columns and beams'; }
    generate >"$work/undisturbed"
    local try killed=no
    for try in 1 2 3 4 5; do
      if kill_its_group; then killed=yes; break; fi
    done
    [[ $killed == yes ]] || fail "no stream was still running when its group was killed, in 5 tries"
  done
  [[ $(ready_lines) -eq 1 ]] || fail "READY came $(ready_lines) times although one group served on"
  kill -TERM "$up"
  ends_with 0 45
}

# Kills the group under a stream of generate(); 1 if the stream had ended before.
kill_its_group() {
  local replays stream victim number other survivor ended
  replays=$(status "s['replays']")
  : >"$work/disturbed"
  generate >"$work/disturbed" 2>"$work/disturbed.err" &
  stream=$!
  eventually 20 test -s "$work/disturbed" || fail "no text after 20 s"
  # "NUMBER PID" of a rank of the group whose slot is in use.
  victim=$(status "' '.join(g['name'][6:] + ' ' + str(g['layout']['stages'][0]['pids'][0])
    for g in s['groups'] if g['slots_used'])")
  if [[ -z $victim ]]; then
    wait "$stream" || fail "the stream ended with code $?"
    return 1
  fi
  number=${victim% *}
  other=$((1 - number))
  survivor=$(group_pid "$other")
  ended=$(grep -c "group-$number ended with" "$work/up.err" || true)
  kill -KILL "${victim#* }"
  wait "$stream" || fail "the stream ended with code $?: $(cat "$work/disturbed.err")"
  cmp "$work/undisturbed" "$work/disturbed" || fail "the stream differs from the undisturbed one"
  [[ ! -s $work/disturbed.err ]] || fail "the client noticed: $(cat "$work/disturbed.err")"
  noticed() { [[ $(grep -c "group-$number ended with" "$work/up.err") -gt $ended ]]; }
  eventually 20 noticed || fail "nobody noticed that group-$number ended"
  eventually 60 both_serve || fail "group-$number does not serve again"
  [[ $(group_pid "$other") == "$survivor" ]] || fail "group-$other was started again too"
  [[ $(status "s['replays']") -gt $replays ]]
}

# disturbed WHAT TP PP: kills WHAT (worker or coordinator) while a stream runs; it must equal the undisturbed one.
disturbed() {
  start_up "$model" --tp "$2" --pp "$3" --threads 1
  wait_ready
  local sampling
  for sampling in "" "--temperature 0.8 --seed 7"; do
    # shellcheck disable=SC2086
    generate() { pergola generate --ignore-eos --max-new-tokens 400 $sampling 'Columns and beams'; }
    generate >"$work/undisturbed"
    local try killed=no readies
    for try in 1 2 3 4 5; do
      readies=$(ready_lines)
      : >"$work/disturbed"
      local victim
      if [[ $1 == worker ]]; then
        victim=$(status "s['groups'][0]['layout']['stages'][-1]['pids'][-1]")
      else
        victim=$(field coordinator_pid)
      fi
      generate >"$work/disturbed" 2>"$work/disturbed.err" &
      local stream=$!
      eventually 20 test -s "$work/disturbed" || fail "no text after 20 s"
      kill -KILL "$victim"
      [[ $(stat -c %s "$work/disturbed") -lt $(stat -c %s "$work/undisturbed") ]] && killed=yes
      wait "$stream" || fail "the stream ended with code $?: $(cat "$work/disturbed.err")"
      cmp "$work/undisturbed" "$work/disturbed" || fail "the stream differs from the undisturbed one"
      wait_ready $((readies + 1))
      [[ $killed == yes ]] && break
    done
    [[ $killed == yes ]] || fail "no stream was still running when $1 was killed, in 5 tries"
  done
  kill -TERM "$up"
  ends_with 0 45
}

case_kill_worker() { disturbed worker 2 2; }
case_kill_coordinator() { disturbed coordinator 2 1; }

case_errors() {
  refused 'heads' "$model" --tp 99
  refused 'layer' "$model" --pp 99
  ! grep -q "mpirun" "$work/up.err" || fail "ranks were started for a layout that cannot be"
  cp -r "$model" "$work/broken"
  chmod -R u+w "$work/broken"
  local weights
  weights=$(ls "$work/broken/"*.safetensors | head -1)
  truncate -s "$(($(stat -c %s "$weights") / 2))" "$weights"
  refused 'safetensors' "$work/broken"
  # A port that somebody else holds.
  start_up "$model" --threads 1
  wait_ready
  local address code=0
  address=$(field public_address)
  "$bin/pergola" up "$model" --listen "$address" --run-file "$work/second.json" 2>"$work/second.err" || code=$?
  [[ $code -eq 2 ]] || fail "a port in use ends with $code"
  grep -q "${address#*:}" "$work/second.err" || fail "the port is not named"
  kill -TERM "$up"
  ends_with 0 30
}

# A conversation: a template of the model's own, history, Ctrl-C, and what cannot be said.
case_chat() {
  local code=0 talk
  cp -r "$model" "$work/talker"
  chmod -R u+w "$work/talker"
  # Shows what it is told: the answer to a conversation is that to its rendered text.
  printf '%s' "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no orders') }}{% endif %}" \
    "{{ m.role }}: {{ m.content }}. {% endfor %}assistant: " >"$work/talker/chat_template.jinja"
  start_up "$work/talker" --threads 1
  wait_ready
  local limit=(--ignore-eos --max-new-tokens 24)
  pergola chat "${limit[@]}" --message 'columns' >"$work/chat"
  pergola generate "${limit[@]}" 'user: columns. assistant: ' >"$work/generate"
  [[ -s $work/generate && $(cat "$work/chat") == "$(cat "$work/generate")" ]] || fail "chat is not generate"
  printf 'columns\nbeams\n/reset\ncolumns\n/quit\n' | pergola chat "${limit[@]}" >"$work/chat"
  printf '%s\n' "$(cat "$work/generate")" >"$work/expected"
  pergola generate "${limit[@]}" "user: columns. assistant: $(cat "$work/generate"). user: beams. assistant: " \
    >>"$work/expected"
  printf '\n%s\n' "$(cat "$work/generate")" >>"$work/expected"
  cmp "$work/chat" "$work/expected" || fail "the conversation is another: $(cat "$work/chat")"
  pergola chat --system 'be brief' --message 'columns' >"$work/chat" 2>"$work/error" || code=$?
  [[ $code -eq 2 ]] || fail "what the template raises ends with $code"
  grep -q 'messages: chat template: line 1: raised: no orders' "$work/error" || fail "raised: $(cat "$work/error")"
  # Ctrl-C stops the answer, and the conversation goes on.
  mkfifo "$work/said"
  "$bin/pergola" chat --ignore-eos <"$work/said" >"$work/chat" 2>"$work/chat.err" &
  talk=$!
  exec 7>"$work/said"
  echo columns >&7
  eventually 20 test -s "$work/chat" || fail "no answer after 20 s"
  kill -INT "$talk"
  idle() { [[ $(status "s['running']") == 0 ]]; }
  eventually 10 idle || fail "the answer goes on after Ctrl-C"
  local size
  size=$(stat -c %s "$work/chat")
  echo beams >&7
  longer() { [[ $(stat -c %s "$work/chat") -gt $((size + 2)) ]]; }
  eventually 20 longer || fail "the conversation has ended: $(cat "$work/chat.err")"
  kill -INT "$talk"
  eventually 10 idle || fail "the second answer goes on after Ctrl-C"
  [[ $(grep -c 'status=CANCELLED' "$work/up.err") -ge 1 ]] || fail "Ctrl-C cancelled nothing"
  exec 7>&-
  wait "$talk" || fail "the conversation ended with $?: $(cat "$work/chat.err")"
  kill -TERM "$up"
  ends_with 0 30
  # Without a template there is no conversation.
  start_up "$model" --threads 1
  wait_ready
  code=0
  pergola chat --message 'columns' >"$work/chat" 2>"$work/error" || code=$?
  [[ $code -eq 1 ]] || fail "a model without a template ends with $code"
  grep -q 'FAILED_PRECONDITION: the model tiny_text has no chat template' "$work/error" ||
    fail "no template: $(cat "$work/error")"
  kill -TERM "$up"
  ends_with 0 30
}

case_demo_model() {
  local demo=$HOME/.cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf
  [[ -f $demo ]] || { echo "SKIP: no demo model; scripts/demo_model fetches it"; exit 77; }
  # Small enough to be zeroed in no time; one short stream needs little of it.
  start_up "$demo" --tp 2 --pp 2 --worker-arg=--kv-mib=32 \
    --worker-arg=--context-length=512
  wait_ready
  pergola generate --max-new-tokens 8 'The capital of France is' >"$work/text"
  grep -q Paris "$work/text" || fail "no Paris: $(cat "$work/text")"
  pergola chat --temperature 0 --message 'What is the capital of France?' >"$work/text"
  [[ $(cat "$work/text") == 'The capital of France is Paris.' ]] || fail "it answers: $(cat "$work/text")"
  kill -TERM "$up"
  ends_with 0 45
}

"case_$case"
echo "ok: $case"

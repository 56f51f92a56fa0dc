#!/usr/bin/env bash
# End-to-end cases of the pergola command on one machine: real processes, mpirun, gRPC on the loopback.
# Usage: run.sh BIN_DIR CASE. The cases are in cases/. Exit code 77 is a skip.
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

for cases in "$root"/tests/e2e/cases/*.sh; do
  # shellcheck source=/dev/null
  source "$cases"
done
declare -F "case_$case" >/dev/null || fail "no case '$case'"
"case_$case"
echo "ok: $case"

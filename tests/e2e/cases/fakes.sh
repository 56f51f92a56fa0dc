# The supervisor's cases, with scripts in place of coordinator and mpirun. Sourced by run.sh.

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

# Streams that survive the death of what they run on. Sourced by run.sh.

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

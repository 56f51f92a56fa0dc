# Flags, files, and what the subcommands say and print. Sourced by run.sh.

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

# Benchmarks, several sequences, metrics. Sourced by run.sh.

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

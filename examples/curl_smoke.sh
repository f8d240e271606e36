#!/usr/bin/env bash
# A quick look at a running server with curl alone: is it up, what does it serve, does it answer, does it stream?
#
#     ./examples/curl_smoke.sh http://127.0.0.1:8080
#
# MACH_API_KEY is sent if it is set. Leaves with 0 if everything was as it should be, else with 1 and the reason.
set -euo pipefail

base=${1:?usage: curl_smoke.sh http://HOST:PORT}
base=${base%/}
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT

fail() {
  echo "FAILED: $1" >&2
  sed 's/^/    /' "$answer" >&2
  exit 1
}

# call WHAT STATUS PATH [CURL ARGUMENT ...]: the answer's body is then in $answer
call() {
  local what=$1 wanted=$2 path=$3 got
  shift 3
  got=$(curl -sS -N --max-time 300 -o "$answer" -w '%{http_code}' -H "Authorization: Bearer ${MACH_API_KEY:-any}" \
    "$@" "$base$path") || fail "$what: $base does not answer"
  [ "$got" = "$wanted" ] || fail "$what: status $got instead of $wanted"
}

# expect WHAT TEXT: the answer holds TEXT
expect() {
  grep -qF -- "$2" "$answer" || fail "$1: no $2 in the answer"
  echo "ok: $1"
}

call "models" 200 /v1/models
expect "models" '"object":"list"'
model=$(sed -n 's/.*"id":"\([^"]*\)".*/\1/p' "$answer")
[ -n "$model" ] || fail "models: no id"
echo "    model: $model"

call "capabilities" 200 /v1/capabilities
expect "capabilities" '"effective_decode_path"'

message='"messages": [{"role": "user", "content": "def reverse(s):"}], "max_tokens": 16, "temperature": 0'
call "chat" 200 /v1/chat/completions -d "{\"model\": \"$model\", $message}"
expect "chat" '"finish_reason"'

call "streamed chat" 200 /v1/chat/completions \
  -d "{\"model\": \"$model\", $message, \"stream\": true, \"stream_options\": {\"include_usage\": true}}"
expect "streamed chat" 'data: [DONE]'
expect "usage at the end of the stream" '"completion_tokens"'

call "JSON on demand" 200 /v1/chat/completions \
  -d "{\"model\": \"$model\", $message, \"reasoning_effort\": \"none\", \"response_format\": {\"type\": \"json_schema\",
       \"json_schema\": {\"name\": \"colour\", \"schema\": {\"enum\": [\"red\", \"green\"]}}}}"
grep -qE '\\"(red|green)\\"' "$answer" || fail "JSON on demand: neither red nor green"
echo "ok: JSON on demand"

call "an unknown model is refused" 404 /v1/chat/completions -d "{\"model\": \"no-such-model\", $message}"
expect "an unknown model is refused" '"model_not_found"'

call "statistics" 200 /v1/stats
expect "statistics" '"queue_depth"'
call "cache statistics" 200 /v1/cache/stats
expect "cache statistics" '"streaming_summary"'

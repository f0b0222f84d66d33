#!/usr/bin/env bash
# Installs a wheel into an empty environment and asks the bundled model a question through it.
set -euo pipefail
wheel=$(realpath "$1")
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "$wheel"
cd "$folder" # Away from the source tree, so that nothing is imported from it.
"$folder/venv/bin/penstock" serve --port 0 --data-dir "$folder/data" --cache-dir "$folder/cache" \
  >"$folder/out" &
server=$!
for _ in $(seq 600); do
  url=$(grep -oE 'http://127\.0\.0\.1:[0-9]+' "$folder/out" | head -n 1) && break
  kill -0 "$server"
  sleep 0.5
done
answer=$(curl --silent --fail "$url/v1/chat/completions" -H 'Content-Type: application/json' \
  -d '{"model": "penstock-demo", "messages": [{"role": "user", "content": "What is 12 + 30?"}]}')
echo "$answer"
grep -q 42 <<<"$answer"
kill "$server"
wait "$server"
echo "The wheel serves the bundled model."

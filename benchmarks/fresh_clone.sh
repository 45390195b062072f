#!/usr/bin/env bash
# Times the README's commands in an empty clone with empty caches; writes docs/reports/fresh_clone.md.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
report=$repository/docs/reports/fresh_clone.md
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git clone --quiet "$repository" "$folder/clone"
cd "$folder/clone"
export HOME=$folder/home UV_CACHE_DIR=$folder/uv
unset POSE_MODEL_PATH SHARED_DATA CI
mkdir -p "$HOME"

rows=()
run() { # label, command...
  local label=$1 code=0
  shift
  SECONDS=0
  "$@" >"$folder/log" 2>&1 </dev/null || code=$?
  rows+=("| $label | $SECONDS | $code | $(tail -n 1 "$folder/log" | tr '|' ' ' | sed "s#$folder##g") |")
  echo "${rows[-1]}"
}

run "\`make demo\`, nothing installed, nothing downloaded" make demo
cp "$folder/log" "$folder/demo.log"
run "\`make demo\` again" make demo
run "\`make install\`, nothing to do" make install
run "\`make test\`" make test
run "\`make lint\`" make lint

{
  echo "# From an empty clone"
  echo
  echo "Reproduce: \`bash benchmarks/fresh_clone.sh\`."
  echo
  echo "A new clone, an empty home folder and an empty package cache, no evaluation data beside it."
  echo "Machine: $(uname -m), $(nproc) CPU cores, no GPU, Python $(python3 -c 'import platform; print(platform.python_version())'). Downloads come from a package index nearby: elsewhere add"
  echo "the time for about 3 GB of wheels and 0.2 GB of models and clips."
  echo
  echo "| command | seconds | exit code | last line |"
  echo "| --- | --- | --- | --- |"
  printf '%s\n' "${rows[@]}"
  echo
  echo "What the demo printed:"
  echo
  echo '```'
  grep -E '^[┏┃┡│└]' "$folder/demo.log"
  echo '```'
} >"$report"

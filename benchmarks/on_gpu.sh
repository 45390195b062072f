#!/usr/bin/env bash
# Everything of the workspace that needs an NVIDIA GPU, in groups, so that a machine lent for
# minutes is used well. Results and logs go to a folder; a failure does not stop the rest.
#
#   benchmarks/on_gpu.sh OUT FRAMES WEIGHTS GROUP...
#
# OUT      folder for results, FRAMES folder of 1080p JPEG files with people in them,
# WEIGHTS  yolo11n-pose.pt, GROUP one or more of: tests engine streams most memory video optimizer
#
# Uses $PYTHON (python3) and whatever is importable there; nothing is installed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1 frames=$2 weights=$3
shift 3
python=${PYTHON:-python3}
mkdir -p "$out"
projects=projects/shared_utils/src:projects/pose_analyzer/src:projects/client/src:projects/gpu_optimizer/src
export PYTHONPATH="$projects:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
POSE_MODEL_PATH=$(cd "$(dirname "$weights")" && pwd)
export POSE_MODEL_PATH POSE_TEST_FRAMES="$frames" POSE_DETECTOR=yolo11n-pose PYTHONUNBUFFERED=1

measure() { # name, most seconds, command...
  local name=$1 limit_s=$2
  shift 2
  local began=$SECONDS
  timeout "$limit_s" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit $? after $((SECONDS - began)) s" | tee -a "$out/summary.txt"
  tail -n 12 "$out/$name.log"
}

tests() {
  # The machine may have other versions than the lock, so warnings are only shown.
  measure tests 180 "$python" -m pytest -q -m gpu -p no:cacheprovider -p no:randomly \
    -o addopts=--import-mode=importlib -o filterwarnings=default \
    projects/shared_utils/tests/test_gpu.py projects/pose_analyzer/tests/test_gpu_detectors.py \
    projects/pose_analyzer/tests/test_gpu_pipeline_cuda.py projects/pose_analyzer/tests/test_nvdec.py
}

engine() {
  measure engine 240 "$python" benchmarks/engine_throughput.py --frames "$frames" \
    --weights "$weights" --seconds 1.5 --out "$out/engine.json" --report "$out/engine.md"
}

streams() {
  measure streams 220 "$python" benchmarks/bench_streams.py --frames "$frames" \
    --streams 1 4 16 64 --fps 30 --seconds 15 --warm-up 5 --no-ultralytics --report "$out/streams.md"
}

most() {
  measure most_streams 240 "$python" benchmarks/bench_streams.py --frames "$frames" \
    --streams 80 --fps 30 --seconds 10 --find-max --no-ultralytics --report "$out/most_streams.md"
}

memory() {
  measure governor 90 "$python" benchmarks/governor_ballast.py --frames "$frames" \
    --detector yolo11n-pose --out "$out/governor.json"
}

video() {
  measure nvdec 180 "$python" benchmarks/nvdec_throughput.py --weights "$weights" \
    --frames "$frames" --out "$out/nvdec.json"
}

optimizer() {
  measure prediction 420 "$python" benchmarks/prediction_accuracy.py \
    --measure "$out/prediction.json"
  measure tracer 180 "$python" benchmarks/tracer_overhead.py --out "$out/tracer.json"
  measure fragmentation 180 "$python" benchmarks/fragmentation.py --record "$out/fragmentation.json"
}

for group in "$@"; do
  case $group in
  tests | engine | streams | most | memory | video | optimizer) "$group" ;;
  *)
    echo "unknown group $group" >&2
    exit 2
    ;;
  esac
done

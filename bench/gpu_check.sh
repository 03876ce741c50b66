#!/usr/bin/env bash
# One command for any machine with a GPU: installs the checkout, runs the GPU tests of every op and the GPU
# benchmarks against plain torch, torch.compile and the peers that import. Under 9 minutes, no network needed.
#
#   bench/gpu_check.sh                   results go to bench/results/gpu-<op>-<dtype>.jsonl
#   OUT=/some/folder bench/gpu_check.sh  results go there
#   PYTHON=python3.12 SECONDS_LIMIT=300 bench/gpu_check.sh
#   STEPS="tests" or STEPS="benchmarks"  runs only these
#
# Leaves with a failure if a test failed or a provider of fastdc gave a wrong result. A short table comes last.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
limit=${SECONDS_LIMIT:-520}
steps=${STEPS:-tests benchmarks}
started=$(date +%s)
failed=0
verdicts=()
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # without it products on several streams have no fixed bits

left() { echo $((limit - $(date +%s) + started)); }

# A step gets at most its share of the time that is left; one that fails is reported and the rest goes on.
step() {
  local share=$1 name=$2 begun
  shift 2
  local seconds=$(($(left) < share ? $(left) : share))
  begun=$(date +%s)
  if ((seconds < 5)); then
    verdicts+=("$name: skipped, out of time")
    return
  fi
  echo "== $name (at most $seconds s)"
  local code=0
  timeout --kill-after=10 "$seconds" "$@" || code=$?
  local word="well"
  if ((code == 124 || code == 137)); then word="out of time"; elif ((code != 0)); then word="failed with $code"; fi
  verdicts+=("$name: $word, $(($(date +%s) - begun)) s")
  if ((code != 0)); then failed=1; fi
}

# An op at one shape, or at the bench's own where none is given.
results=()
benchmark() {
  local share=$1 op=$2 dtype=$3
  shift 3
  local file="$out/gpu-$op-$dtype.jsonl"
  local arguments=(--op "$op" --dtype "$dtype" --device cuda --modes both forward --seconds 0.5 --fresh none --out "$file")
  if (($# > 0)); then arguments+=(--shapes "$@"); fi
  step "$share" "benchmark $op $dtype $*" "$python" -m bench "${arguments[@]}"
  if [[ -s $file && ! " ${results[*]-} " == *" $file "* ]]; then results+=("$file"); fi
}

mkdir -p "$out"
"$python" - <<'PYTHON'
import torch

if not torch.cuda.is_available():
    raise SystemExit("no GPU that torch can use: torch.cuda.is_available() is False")
print(torch.cuda.get_device_name(0), "torch", torch.__version__)
PYTHON

step 45 "install" "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e .

if [[ $steps == *tests* ]]; then
  # kernels compile on all cores where pytest-xdist is there; of huge tensors two tests have room
  side_by_side=() pair=()
  if "$python" -c "import xdist" 2>/dev/null; then side_by_side=(-n "$(nproc)") pair=(-n 2); fi
  tests=("$python" -m pytest -q --maxfail=20 -p no:cacheprovider -m gpu tests)
  step 180 "GPU tests" "${tests[@]}" "${side_by_side[@]}" -k "not gigaelements"
  step 100 "GPU tests of huge tensors" "${tests[@]}" "${pair[@]}" -k gigaelements
fi

if [[ $steps == *benchmarks* ]]; then
  benchmark 30 dec_loss float32 n=1000000,k=1000,d=64
  benchmark 30 kmeans_step bfloat16 n=10000000,k=20000,d=128
  benchmark 30 nt_xent float32 b=32768,d=256
  benchmark 20 sinkhorn_assign float32 n=16384,k=16384
  benchmark 30 knn float32 n=1000000,m=0,d=128
  benchmark 20 student_t_statistics float32 n=10000000,k=1000,d=32
  mapfile -t ops < <("$python" -m bench --list --device cuda | cut -d: -f1)
  for number in "${!ops[@]}"; do
    # twice the even share: most ops take less
    share=$((2 * $(left) / (${#ops[@]} - number) + 5))
    benchmark "$share" "${ops[$number]}" float32
  done
fi

if ((${#results[@]} > 0)); then
  "$python" -m bench.report "${results[@]}" >"$out/gpu-report.md"
  if grep -Eq '[|] (triton|fastdc|reference) [|] (wrong|failed)' "$out/gpu-report.md"; then
    verdicts+=("a provider of fastdc failed or gave a wrong result: see $out/gpu-report.md")
    failed=1
  fi
  for dtype in bfloat16 float32; do
    mapfile -t of_dtype < <(printf '%s\n' "${results[@]}" | grep -- "-$dtype.jsonl" || true)
    if ((${#of_dtype[@]} > 0)); then "$python" -m bench.overview "${of_dtype[@]}"; fi
  done | tee "$out/gpu-overview.md"
fi
printf '== %s\n' "${verdicts[@]}"
verdict="all well"
if ((failed)); then verdict="with failures"; fi
echo "== $(($(date +%s) - started)) s, $verdict"
exit "$failed"

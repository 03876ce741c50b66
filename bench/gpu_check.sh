#!/usr/bin/env bash
# One command for any machine with a GPU: installs the checkout, runs the GPU tests and the GPU benchmarks of
# every op against plain torch, torch.compile and the peers that import. Under 9 minutes, no network needed.
#
#   bench/gpu_check.sh                   results go to bench/results/gpu-<op>.jsonl
#   OUT=/some/folder bench/gpu_check.sh  results go there
#   PYTHON=python3.12 SECONDS_LIMIT=300 bench/gpu_check.sh
#
# Leaves with a failure if a test failed or a provider of fastdc gave a wrong result.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-bench/results}
limit=${SECONDS_LIMIT:-520}
started=$(date +%s)
failed=0

left() { echo $((limit - $(date +%s) + started)); }

# A step gets at most its share of the time that is left; one that fails is reported and the rest goes on.
step() {
  local share=$1 name=$2
  shift 2
  local seconds=$(($(left) < share ? $(left) : share))
  if ((seconds < 5)); then
    echo "== $name: skipped, out of time"
    failed=1
    return
  fi
  echo "== $name (at most $seconds s)"
  local code=0
  timeout --kill-after=10 "$seconds" "$@" || code=$?
  if ((code != 0)); then
    echo "== $name: failed with $code"
    failed=1
  fi
}

mkdir -p "$out"
"$python" - <<'PYTHON'
import torch

if not torch.cuda.is_available():
    raise SystemExit("no GPU that torch can use: torch.cuda.is_available() is False")
print(torch.cuda.get_device_name(0), "torch", torch.__version__)
PYTHON

step 60 "install" "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e .
step 200 "GPU tests" "$python" -m pytest -q -x -m gpu -p no:cacheprovider tests

mapfile -t ops < <("$python" -m bench --list --device cuda | cut -d: -f1)
results=()
for op in "${ops[@]}"; do
  file="$out/gpu-$op.jsonl"
  fresh=none
  if [[ $op == dec_loss ]]; then fresh=first; fi
  step 110 "benchmark $op" "$python" -m bench --op "$op" --device cuda --seconds 1 --fresh "$fresh" --out "$file"
  if [[ -s $file ]]; then results+=("$file"); fi
done

if ((${#results[@]} > 0)); then
  "$python" -m bench.report "${results[@]}" | tee "$out/gpu-report.md"
  if grep -Eq '[|] (triton|reference) [|] (wrong|failed)' "$out/gpu-report.md"; then
    echo "== a provider of fastdc failed or gave a wrong result"
    failed=1
  fi
fi
verdict="all well"
if ((failed)); then verdict="with failures"; fi
echo "== $(($(date +%s) - started)) s, $verdict"
exit "$failed"

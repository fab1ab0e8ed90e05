#!/usr/bin/env bash
# CUDA-Q's state-vector simulator `qpp-cpu` takes `noise_model=` in `observe` and returns the values of the circuit
# without noise; `density-matrix-cpu` applies it. No exception tells the two apart.
#
# Seen: cuda-quantum-cu13 0.16.0.post1: X with a bit flip of 0.25: qpp-cpu -1.0, density-matrix-cpu -0.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "numpy==2.4.6" "scipy==1.17.1" "astpretty==3.0.0" "requests==2.34.2"
"$folder/venv/bin/pip" install --quiet --no-deps "cuda-quantum-cu13==0.16.0.post1"  # without GPU libraries
cat >"$folder/look.py" <<'PY'
import sys
import warnings

warnings.simplefilter("ignore")
import cudaq
from cudaq import spin


@cudaq.kernel
def flipped():
    q = cudaq.qubit()
    x(q)


noise = cudaq.NoiseModel()
noise.add_all_qubit_channel("x", cudaq.BitFlipChannel(0.25))
cudaq.set_target(sys.argv[1])
print(round(cudaq.observe(flipped, spin.z(0), noise_model=noise).expectation(), 6))
PY
status=0
for target in qpp-cpu density-matrix-cpu; do
  got=$("$folder/venv/bin/python" "$folder/look.py" $target 2>/dev/null | tail -1)
  echo "$target: <Z> after X with a bit flip of 0.25: $got"
  case $target in
    qpp-cpu) want=-1.0 ;;             # as without noise
    density-matrix-cpu) want=-0.5 ;;  # -(1 - 2 * 0.25)
  esac
  [ "$got" = "$want" ] || { echo "changed: $want was seen before" >&2; status=1; }
done
exit $status

#!/usr/bin/env bash
# CUDA-Q's ObserveResult.expectation(op) is 0.0 for a Pauli string that was not part of what was observed, and it
# leaves the coefficient of a term out. Both look like results.
#
# Seen: cuda-quantum-cu13 0.16.0.post1: after X on both qubits, 3 Z0 + Z1 observed: all -4, 3 Z0 -> -1, Z0 Z1 -> 0 (exactly 1)
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
    q = cudaq.qvector(2)
    x(q)


cudaq.set_target("qpp-cpu")
told = cudaq.observe(flipped, 3.0 * spin.z(0) + spin.z(1))
asked = {
    "all": told.expectation(),
    "3 Z0, observed": told.expectation(3.0 * spin.z(0)),
    "Z0 Z1, not observed, exactly 1": told.expectation(spin.z(0) * spin.z(1)),
}
for name, value in asked.items():
    print(f"{name}: {value:+.3f}")
if [round(value, 6) for value in asked.values()] != [-4.0, -1.0, 0.0]:
    sys.exit("changed: -4, -1 and 0 were seen before")
PY
"$folder/venv/bin/python" "$folder/look.py" 2>/dev/null

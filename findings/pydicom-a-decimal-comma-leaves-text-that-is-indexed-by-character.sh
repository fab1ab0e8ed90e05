#!/usr/bin/env bash
# A DS value with a decimal comma is no DS. pydicom 3 warns and keeps it as text when it reads the file, so an index
# that takes the first of several values takes a character: 1 of 1024,5. A plain number there has no index at all.
#
# Seen: pydicom 3.0.2: WindowCenter '1024,5' is str, and [0] of it is '1'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pydicom==3.0.2"
"$folder/venv/bin/python" - <<'PY'
import io
import struct
import sys
import warnings

from pydicom import dcmread

warnings.simplefilter("ignore")
value = b"1024,5"
element = struct.pack("<HH2sH", 0x0028, 0x1050, b"DS", len(value)) + value
head = b"\0" * 128 + b"DICM"
syntax = b"1.2.840.10008.1.2.1\0"
meta = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(syntax)) + syntax
length = struct.pack("<HH2sHI", 0x0002, 0x0000, b"UL", 4, len(meta))
ds = dcmread(io.BytesIO(head + length + meta + element))
got = ds.WindowCenter
print(f"WindowCenter is {type(got).__name__} {got!r}, [0] of it is {got[0]!r}")
if not (isinstance(got, str) and got[0] == "1"):
    sys.exit("changed: text '1024,5' was seen before")
PY

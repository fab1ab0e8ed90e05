"""The peer of `bench_start.py`: one DICOM file through an export's single-file graph, bare.

python benchmarks/start_bare.py EXPORT FILE
"""

import sys

import numpy as np
import onnxruntime
import pydicom

session = onnxruntime.InferenceSession(f"{sys.argv[1]}/single.onnx")
(value,) = session.get_inputs()
side = value.shape[1]
grey = pydicom.dcmread(sys.argv[2]).pixel_array.astype(np.float32)
grey -= grey.min()
grey /= max(float(grey.max()), 1.0)
rows, columns = (np.linspace(0, length - 1, side).astype(int) for length in grey.shape)
outputs = session.run(None, {value.name: grey[np.ix_(rows, columns)][None]})
names = [output.name for output in session.get_outputs()]
print(outputs[names.index("probabilities")])

"""Write the sample phantoms that the viewer ships: `.venv/bin/python tools/make_samples.py`."""

import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom import dcmread

from medqua.train.data.phantom.canvas import Exposure
from medqua.train.data.phantom.causes import Cause, draw_patient
from medqua.train.data.phantom.detector import Storage, expose, store
from medqua.train.data.phantom.files import Identity, write_image

TARGET = Path(__file__).resolve().parents[1] / "packages/ui/src/medqua/ui/samples"
CASES = (  # name, view, stored as, bits, causes
    ("phantom-pa-effusion", "PA", "MONOCHROME2", 12, {"Pleural Effusion": 0.8}),
    ("phantom-pa-monochrome1", "PA", "MONOCHROME1", 12, {"Cardiomegaly": 0.9}),
    ("phantom-lateral", "LATERAL", "MONOCHROME2", 10, {}),
)


def main() -> None:
    TARGET.mkdir(exist_ok=True)
    for number, (name, view, photometric, bits, severities) in enumerate(CASES):
        patient = draw_patient(np.random.default_rng(number + 7))
        patient.causes.clear()
        for finding, severity in severities.items():
            patient.causes[finding] = Cause(severity=severity, side=-1, place=(0.5, 0.5), seed=1)
        exposure = Exposure(
            view=view, height=640, width=560, shift=(0.0, 0.0), tilt=0.0, inspiration=1.0,
            dose=40.0, seed=number,
        )  # fmt: skip
        storage = Storage(bits=bits, photometric=photometric)
        identity = Identity(
            subject=90_000_900 + number,
            study=95_000_900 + number,
            image="-".join([f"{number:08x}"] * 5),
            moment=datetime.datetime(2150, 1, 1 + number, 12, 0),
        )
        stored = store(expose(patient, exposure), storage)
        with TemporaryDirectory() as folder:
            write_image(
                Path(folder), identity, patient, exposure, storage, stored,
                compress=True, dicom=True,
            )  # fmt: skip
            (source,) = Path(folder).glob("*.dcm")
            dcmread(source).save_as(TARGET / f"{name}.dcm", enforce_file_format=True)


if __name__ == "__main__":
    main()

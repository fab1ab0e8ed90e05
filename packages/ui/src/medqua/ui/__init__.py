"""The DICOM viewer. It stands on `medqua.serve` alone."""

"""The errors of MedQua.

Every mistake that a user can make or a file can bring ends in one of these. A message says what
was got, what was needed and what to do; it never holds patient data or a traceback.

    MedQuaError
    ├── ConfigError (ValueError)      a recipe, adapter config or option that contradicts itself
    ├── ShapeError (ValueError)       a tensor of the wrong shape, dtype or range
    ├── DataError (ValueError)        a data set: table, column, label, split, missing file
    ├── ImageError (ValueError)       one image file
    │   ├── UnreadableImageError      its bytes cannot be decoded, or decoding ran past a limit
    │   └── OutOfScopeError           it decodes, but is not a frontal chest radiograph
    ├── QuantumError (RuntimeError)   an engine or target that is absent or lacks a capability
    ├── BackboneError (RuntimeError)  a pretrained model that cannot be found, loaded or adapted
    └── BundleError (RuntimeError)    a bundle that is incomplete, altered, or of a newer schema
"""


class MedQuaError(Exception):
    """Root of every error that MedQua raises on purpose."""


class ConfigError(MedQuaError, ValueError):
    """A recipe, adapter configuration or option that is unknown or contradicts itself."""


class ShapeError(MedQuaError, ValueError):
    """A tensor whose shape, dtype or range is not what the called function needs."""


class DataError(MedQuaError, ValueError):
    """A data set that is incomplete or malformed: table, column, label, split, missing file."""


class ImageError(MedQuaError, ValueError):
    """One image file that cannot be used."""


class UnreadableImageError(ImageError):
    """Bytes that cannot be decoded to pixels, or whose decoding ran past a safety limit."""


class OutOfScopeError(ImageError):
    """A readable image that is not a single-frame frontal chest radiograph."""


class QuantumError(MedQuaError, RuntimeError):
    """A bottleneck engine or CUDA-Q target that is absent or lacks a capability."""


class BackboneError(MedQuaError, RuntimeError):
    """A pretrained model that cannot be found, loaded or adapted."""


class BundleError(MedQuaError, RuntimeError):
    """A bundle that is incomplete, altered, or written by a newer schema."""

"""What can go wrong between this service and an archive. No message holds what a peer said.

MedQuaError
└── PacsError (RuntimeError)
├── PacsUnreachableError   nobody answers, or the connection broke
├── PacsTimeoutError       it answers too slowly
├── PacsRejectedError      it refuses the association, the request or the object
├── PacsGarbledError       its answer is none by the standard
└── PacsConflictError      it holds another object under this UID
└── SpoolError (RuntimeError)  the folder is full, or the disk refuses
"""

from medqua.core.errors import MedQuaError


class PacsError(MedQuaError, RuntimeError):
    """An object was not stored by an archive; it stays in the outbox."""


class PacsUnreachableError(PacsError):
    """The archive cannot be reached, or the connection broke."""


class PacsTimeoutError(PacsError):
    """The archive did not answer in time."""


class PacsRejectedError(PacsError):
    """The archive refused."""


class PacsGarbledError(PacsError):
    """The archive answered something that is no answer."""


class PacsConflictError(PacsError):
    """The archive holds another object under this UID, and keeps that one."""


class SpoolError(MedQuaError, RuntimeError):
    """An object cannot be kept on disk, so it must not be said to be."""

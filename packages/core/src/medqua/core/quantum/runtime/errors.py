"""Errors of providers, and what may be done about each."""

import re

from medqua.core.errors import QuantumError

CONNECTING = ("Failed to connect", "Could not resolve", "Couldn't resolve", "Could not connect")
"""What the HTTP client says when nothing reached the provider."""


class ProviderError(QuantumError):
    """A provider's refusal, and what may be done about it.

    `kind` is `retry` (the same request may be made again), `refused` (it will be refused again),
    `failed` (the job ended without an answer and may be submitted anew) or `doubt` (nobody knows
    whether the submission arrived).
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def kind_of(message: str, submitting: bool) -> str:
    """Return the `ProviderError.kind` of what CUDA-Q's HTTP client reports."""
    status = re.search(r"HTTP \w+ Error - status code (\d+)", message)
    if status is None:
        return "refused" if submitting else "failed"
    code = int(status[1])
    if code == 0 and not any(text in message for text in CONNECTING):
        return "doubt" if submitting else "retry"
    if submitting and code in (502, 504):  # a gateway gave up on what it had passed on
        return "doubt"
    if 400 <= code < 500 and code not in (408, 425, 429):
        return "refused"
    return "retry"

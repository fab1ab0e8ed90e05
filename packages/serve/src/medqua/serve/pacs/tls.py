"""DICOM over TLS, by the profile of RFC 9325 (PS3.15 section B.12): TLS 1.2 or later.

Certificates are asked of both sides wherever authorities for the other side's are given.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

from medqua.core.errors import ConfigError


@dataclass(frozen=True)
class Certificates:
    """What one end of a DICOM connection shows, and whom it believes; PEM files."""

    certificate: Path | None = None
    """Own certificate chain."""
    private_key: Path | None = None
    """Its private key."""
    authorities: Path | None = None
    """Who vouches for the other end; None takes the system's for an archive, nobody's for peers."""

    def for_archive(self) -> ssl.SSLContext:
        """Return the context of an association that we ask for; the archive's name is checked.

        Raises:
            ConfigError: A file cannot be read, or holds something else.
        """
        context = ssl.create_default_context()
        if self.authorities is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # believes none of the system's
        return self._load(context)

    def for_peers(self) -> ssl.SSLContext:
        """Return the context of associations that peers ask for.

        Raises:
            ConfigError: A file cannot be read, or holds something else.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.authorities is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return self._load(context)

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            if self.authorities is not None:
                context.load_verify_locations(self.authorities)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.private_key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(
                str(file)
                for file in (self.certificate, self.private_key, self.authorities)
                if file is not None
            )
            reason = type(error).__name__ if isinstance(error, ssl.SSLError) else error.strerror
            raise ConfigError(f"TLS needs PEM files; one of {files} is none ({reason})") from None
        return context

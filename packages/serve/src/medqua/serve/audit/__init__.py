"""Who asked what, when, and what they were told: on disk, and for the audit repository."""

from medqua.serve.audit.log import AuditError, AuditLog, verify
from medqua.serve.audit.repository import Repository

__all__ = ["AuditError", "AuditLog", "Repository", "verify"]

"""Who asked what, when, and what they were told: on disk, and for the audit repository."""

from medqua.serve.audit.log import AuditLog, verify
from medqua.serve.audit.repository import Repository

__all__ = ["AuditLog", "Repository", "verify"]

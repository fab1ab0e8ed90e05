"""Entries of the audit log as DICOM audit messages (PS3.15 section A.5), for a syslog collector.

The service starting and ending are *Application Activity*. A request without valid credentials is
*User Authentication*, one that a caller's role does not allow a *Security Alert*. Any other is of
an event type of our own: DICOM's events on images name patient and study, and the log holds
neither. Files and answers are named by their SHA-256.
"""

import base64
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree as Xml

DCM, OWN = "DCM", "99MEDQUA"

ACTIVITY = {
    "start": ("110120", DCM, "Application Start"),
    "stop": ("110121", DCM, "Application Stop"),
}
"""Actions that are the service's own, by event type (PS3.16 CID 401)."""

EVENTS = {
    401: (("110114", DCM, "User Authentication"), ("110122", DCM, "Login")),
    403: (("110113", DCM, "Security Alert"), ("110132", DCM, "Use of Restricted Function")),
}
"""HTTP status of a request -> event and its type (PS3.15 A.5.3, PS3.16 CID 400 to 403)."""

SUCCESS, MINOR, SERIOUS = "0", "4", "8"
"""Event outcome indicators (PS3.15 section A.5.1)."""


def outcome_of(status: int) -> str:
    """Return the outcome indicator of an HTTP status; of DIMSE's, 0 is success."""
    if status < 400:
        return SUCCESS
    return MINOR if status < 500 else SERIOUS


def to_messages(entry: Mapping[str, Any], source: str) -> Iterator[bytes]:
    """Yield the messages of an entry: one for each outcome that its files had.

    Args:
        entry: As `AuditLog` wrote it.
        source: Name of this installation.

    Yields:
        XML by the schema of PS3.15 section A.5.1, UTF-8.
    """
    answered = [entry["status"]] if entry.get("status") else []
    outcomes = [outcome_of(status) for status in entry["outcome"] or answered] or [SUCCESS]
    files = entry["what"]
    if len(outcomes) != len(files):  # the answer is to all of them
        outcomes = [max(outcomes)] * max(1, len(files))
    for outcome in sorted(set(outcomes)):
        told = [file for file, own in zip(files, outcomes, strict=False) if own == outcome]
        yield _message(entry, source, outcome, told)


def _message(entry: Mapping[str, Any], source: str, outcome: str, files: list[str]) -> bytes:
    activity = ACTIVITY.get(entry["action"])
    message = Xml.Element("AuditMessage")
    event = Xml.SubElement(
        message, "EventIdentification", EventActionCode="E",
        EventDateTime=entry["time"], EventOutcomeIndicator=outcome,
    )  # fmt: skip
    if activity is not None:
        _code(event, "EventID", "110100", DCM, "Application Activity")
        _code(event, "EventTypeCode", *activity)
    elif (known := EVENTS.get(entry.get("status", 0))) is not None:
        _code(event, "EventID", *known[0])
        _code(event, "EventTypeCode", *known[1])
        _code(event, "EventTypeCode", "request", OWN, entry["action"])
    else:
        _code(event, "EventID", "findings", OWN, "Findings of images")
        _code(event, "EventTypeCode", "request", OWN, entry["action"])
    person = Xml.SubElement(
        message, "ActiveParticipant", UserID=entry["who"] or "unknown",
        UserIsRequestor="false" if activity else "true",
    )  # fmt: skip
    if address := entry.get("address"):
        person.set("NetworkAccessPointID", address)
        person.set("NetworkAccessPointTypeCode", "2")  # IP address
    if activity is not None:
        _code(person, "RoleIDCode", "110150", DCM, "Application")
    else:
        application = Xml.SubElement(
            message, "ActiveParticipant", UserID=source, UserIsRequestor="false"
        )
        _code(application, "RoleIDCode", "110150", DCM, "Application")
    where = Xml.SubElement(message, "AuditSourceIdentification", AuditSourceID=source)
    _code(where, "AuditSourceTypeCode", "4", DCM, "Application Server")
    request = base64.b64encode(entry["request_id"].encode()).decode()
    for sha256 in files:
        _object(message, sha256, "SHA-256 of a file", "4", request)  # domain resource
    if activity is None and entry["result"]:
        _object(message, entry["result"], "SHA-256 of the answer", "3", request)  # report
    told: bytes = Xml.tostring(message, encoding="utf-8", xml_declaration=True)
    return told


def _code(parent: Xml.Element, name: str, value: str, scheme: str, meaning: str) -> None:
    attributes = {"csd-code": value, "codeSystemName": scheme, "originalText": meaning}
    Xml.SubElement(parent, name, attributes)


def _object(parent: Xml.Element, sha256: str, meaning: str, role: str, request: str) -> None:
    thing = Xml.SubElement(
        parent, "ParticipantObjectIdentification", ParticipantObjectID=sha256,
        ParticipantObjectTypeCode="2", ParticipantObjectTypeCodeRole=role,
    )  # fmt: skip
    _code(thing, "ParticipantObjectIDTypeCode", "sha-256", OWN, meaning)
    Xml.SubElement(thing, "ParticipantObjectName").text = meaning
    Xml.SubElement(thing, "ParticipantObjectDetail", type="request", value=request)

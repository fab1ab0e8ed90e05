"""Audit messages against the tables of PS3.15 section A.5."""

import base64
from xml.etree import ElementTree as Xml

import pytest

from medqua.serve.audit.messages import to_messages

ENTRY = {
    "time": "2026-01-02T03:04:05.678+00:00", "who": "key:p&cs", "request_id": "r-1",
    "action": "POST /v1/findings", "what": ["aa", "bb", "cc"], "outcome": [200, 422, 200],
    "result": "dd", "previous": "ee",
}  # fmt: skip


def parsed(entry: dict) -> list[Xml.Element]:
    return [Xml.fromstring(message) for message in to_messages(entry, "Ward 3")]


def test_success_and_failure_are_messages_of_their_own():
    """Table A.5.2-1, EventOutcomeIndicator: not a single message with mixed results."""
    good, bad = parsed(ENTRY)
    for message, outcome, files in ((good, "0", ["aa", "cc"]), (bad, "4", ["bb"])):
        event = message.find("EventIdentification")
        assert event.attrib == {
            "EventActionCode": "E", "EventDateTime": ENTRY["time"],
            "EventOutcomeIndicator": outcome,
        }  # fmt: skip
        things = message.findall("ParticipantObjectIdentification")
        assert [thing.get("ParticipantObjectID") for thing in things] == [*files, "dd"]
        assert [thing.get("ParticipantObjectTypeCodeRole") for thing in things][-1] == "3"
        detail = things[0].find("ParticipantObjectDetail")
        assert base64.b64decode(detail.get("value")) == b"r-1"


def test_elements_stand_in_the_order_of_the_schema():
    """Section A.5.1: event, participants, source, objects; codes with all that they need."""
    order = [
        "EventIdentification", "ActiveParticipant", "AuditSourceIdentification",
        "ParticipantObjectIdentification",
    ]  # fmt: skip
    for message in parsed(ENTRY):
        assert message.tag == "AuditMessage"
        found = [child.tag for child in message]
        assert found == sorted(found, key=order.index)
        requestors = list(message.iter("ActiveParticipant"))
        assert [p.get("UserIsRequestor") for p in requestors] == ["true", "false"]
        assert requestors[0].get("UserID") == "key:p&cs"
        assert message.find("AuditSourceIdentification").get("AuditSourceID") == "Ward 3"
        for element in message.iter():
            if "csd-code" in element.attrib:
                assert set(element.attrib) == {"csd-code", "codeSystemName", "originalText"}
        thing = message.find("ParticipantObjectIdentification")
        assert [child.tag for child in thing] == [
            "ParticipantObjectIDTypeCode", "ParticipantObjectName", "ParticipantObjectDetail"
        ]  # fmt: skip


@pytest.mark.parametrize(("action", "code"), [("start", "110120"), ("stop", "110121")])
def test_start_and_end_are_application_activity(action: str, code: str):
    """Table A.5.3.1-1."""
    entry = ENTRY | {"who": "service", "action": action, "what": [], "outcome": [], "result": ""}
    (message,) = parsed(entry)
    event = message.find("EventIdentification")
    assert event.find("EventID").get("csd-code") == "110100"
    assert event.find("EventTypeCode").get("csd-code") == code
    assert message.find("ActiveParticipant/RoleIDCode").get("csd-code") == "110150"
    assert message.find("ParticipantObjectIdentification") is None


@pytest.mark.parametrize(
    ("outcome", "indicators"),
    [([200], ["0"]), ([0], ["0"]), ([401], ["4"]), ([503], ["8"]), ([200, 500], ["8"])],
)
def test_outcomes_of_another_number_than_files_are_those_of_all(
    outcome: list[int], indicators: list[str]
):
    entry = ENTRY | {"what": ["aa"], "outcome": outcome}
    events = [message.find("EventIdentification") for message in parsed(entry)]
    assert [event.get("EventOutcomeIndicator") for event in events] == indicators


@pytest.mark.parametrize(
    ("status", "event", "kind", "outcome"),
    [
        (401, "110114", "110122", "4"), (403, "110113", "110132", "4"),
        (429, "findings", "request", "4"), (200, "findings", "request", "0"),
        (503, "findings", "request", "8"),
    ],
)  # fmt: skip
def test_who_was_not_let_in_is_an_event_of_dicoms_own(
    status: int, event: str, kind: str, outcome: str
):
    """Tables A.5.3.11-1 and A.5.3.12-1, CID 403 and 400."""
    told = {"who": "", "what": [], "outcome": [], "status": status, "address": "192.0.2.7"}
    (message,) = parsed(ENTRY | told)
    found = message.find("EventIdentification")
    assert found.get("EventOutcomeIndicator") == outcome
    assert found.find("EventID").get("csd-code") == event
    assert found.find("EventTypeCode").get("csd-code") == kind
    person = message.find("ActiveParticipant")
    assert person.get("UserID") == "unknown"
    assert person.get("NetworkAccessPointID") == "192.0.2.7"
    assert person.get("NetworkAccessPointTypeCode") == "2"

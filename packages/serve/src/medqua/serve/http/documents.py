"""What the routes answer, as OpenAPI describes it."""

from typing import Any, Literal

from pydantic import BaseModel


class FindingDocument(BaseModel):
    """One finding of an image."""

    label: str
    code: dict[str, Any] | None
    logit: float
    probability: float
    call: Literal["likely", "uncertain", "unlikely", "not judged"]


class RefusalDocument(BaseModel):
    """Why a file has no findings."""

    error: str
    reason: str


class ReportDocument(BaseModel):
    """The structured report of a file."""

    sop_instance_uid: str | None
    queued: bool
    reason: str | None


class AnswerDocument(BaseModel):
    """What became of one file."""

    source: str
    status: int
    findings: list[FindingDocument] | None
    quantum: dict[str, Any] | None
    refusal: RefusalDocument | None
    notes: list[str]
    sha256: str
    seconds: float
    bundle: str | None
    export: str | None
    version: str | None
    report: ReportDocument | None = None


class FindingsDocument(BaseModel):
    """What became of the files of a request."""

    request_id: str
    provenance: dict[str, Any]
    results: list[AnswerDocument]


class ExplanationDocument(BaseModel):
    """One file's findings, and how they came about."""

    request_id: str
    provenance: dict[str, Any]
    result: AnswerDocument
    explanation: dict[str, Any] | None


class JobDocument(BaseModel):
    """How far a job is."""

    id: str
    status: Literal["queued", "running", "done"]
    files: int
    answered: int
    created: float
    finished: float | None


class ProblemDocument(BaseModel):
    """Why a request was not served."""

    error: str


ANSWER_EXAMPLE = {
    "source": "chest.dcm",
    "status": 200,
    "findings": [
        {
            "label": "Cardiomegaly",
            "code": {"scheme": "SCT", "value": "8186001", "meaning": "Cardiomegaly"},
            "logit": -0.85,
            "probability": 0.3,
            "call": "unlikely",
        }
    ],
    "quantum": None,
    "refusal": None,
    "notes": ["body part not stated: taken for a chest"],
    "sha256": 64 * "0",
    "seconds": 0.21,
    "bundle": 64 * "a",
    "export": None,
    "version": "0.1.0",
}

FINDINGS_EXAMPLE = {
    "request_id": "5f3a",
    "provenance": {"intended_use": "Research use only, not for diagnosis."},
    "results": [ANSWER_EXAMPLE],
}

JOB_EXAMPLE = {
    "id": 32 * "0",
    "status": "running",
    "files": 240,
    "answered": 17,
    "created": 1.78e9,
    "finished": None,
}

BINARY = {"schema": {"type": "string", "format": "binary"}}

FILES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                    "required": ["files"],
                },
                "encoding": {"files": {"contentType": "application/octet-stream"}},
            },
            "application/dicom": BINARY,
            "application/zip": BINARY,
            "application/octet-stream": BINARY,
            "image/jpeg": BINARY,
            "image/png": BINARY,
        },
    }
}
"""Body of a request with files: a form with any number of them, or one as it is."""


DICOM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/related": {"schema": {"type": "string", "format": "binary"}},
            "application/dicom": BINARY,
        },
    }
}
"""Body of a STOW-RS request: `multipart/related; type="application/dicom"`, or one object."""

STORED_EXAMPLE = {
    "00081190": {"vr": "UR"},
    "00081199": {
        "vr": "SQ",
        "Value": [
            {
                "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.1"]},
                "00081155": {"vr": "UI", "Value": ["1.2.3.4"]},
            }
        ],
    },
}


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema with its own definitions where they are named.

    Their references count from the root of a document, which in OpenAPI is another.
    """
    known = schema.get("$defs", {})

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            if isinstance(name := value.get("$ref"), str):
                return inside(known[name.removeprefix("#/$defs/")])
            return {key: inside(item) for key, item in value.items() if key != "$defs"}
        return [inside(item) for item in value] if isinstance(value, list) else value

    told: dict[str, Any] = inside(schema)
    return told


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for OpenAPI; those of access control belong to all."""
    told = {
        400: "The request cannot be read.",
        401: "No valid credentials.",
        403: "Not with this role.",
        404: "Not there.",
        408: "The body came too slowly.",
        409: "Not finished yet.",
        413: "Over a limit.",
        415: "No kind of body that is taken.",
        422: "No file could be used, or a value is wrong.",
        429: "Overloaded, or too many requests; see Retry-After.",
        503: "Not available now.",
        504: "Not answered before its deadline.",
    }
    return {
        status: {"model": ProblemDocument, "description": told[status]}
        for status in sorted({400, 401, 403, 429, *statuses})
    }

"""A note that an image is worth a look: a Key Object Selection (PS3.3 A.35.4) of that image."""

from datetime import datetime
from importlib.metadata import version

from highdicom import ko
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medqua.core.findings.result import Findings
from medqua.serve.objects.identity import MANUFACTURER, derive_uid
from medqua.serve.report.options import ReportOptions, decisive
from medqua.serve.report.sr import (
    DEVICES,
    DISCLAIMER,
    NO_FINDING,
    finish,
    nameless,
    observer,
)

SERIES_NUMBER = 9903
"""Series Number (0020,0011)."""


def build_key_object(
    findings: Findings, image: Dataset, options: ReportOptions, *, when: datetime
) -> Dataset | None:
    """Select an image with findings that are present by the model's operating points.

    Args:
        findings: What a model says of the image.
        image: Its attributes, from `medqua.serve.objects.reference`.
        options: As of the report.
        when: Time of the content.

    Returns:
        A Key Object Selection Document with file meta information; None without such findings.
    """
    likely = [
        finding
        for finding in findings
        if finding.call == "likely" and finding.label not in (NO_FINDING, DEVICES)
    ]
    if not likely:
        return None
    told = "; ".join(f"{f.label} {100 * f.probability:.0f} %" for f in likely)
    parts = decisive(findings, image, options, "KO", when)
    evidence = nameless(image)
    content = ko.KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=[evidence],
        observer_device_context=observer(options),
        description=f"{DISCLAIMER} Calibrated probability: {told}",
    )
    selection = ko.KeyObjectSelectionDocument(
        evidence=[evidence],
        content=content,
        series_instance_uid=derive_uid("series", *parts),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derive_uid("instance", *parts),
        instance_number=1,
        manufacturer=MANUFACTURER,
    )
    selection.SeriesDescription = "Images of interest by MedQua: research use only"
    selection.ManufacturerModelName = "medqua-serve"
    selection.SoftwareVersions = version("medqua-serve")
    return finish(selection, image, when)

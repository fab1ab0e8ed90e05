from dataclasses import replace

import pytest

from medqua.core.errors import OutOfScopeError
from medqua.core.vision.scope import Header, anatomy_words, check_scope, unstated

CHEST = Header(
    modality="DX",
    sop_class="1.2.840.10008.5.1.4.1.1.1.1",
    transfer_syntax="1.2.840.10008.1.2.1",
    body_part="CHEST",
    region_codes=(),
    described=(),
    view_position="PA",
    view_codes=(),
    laterality="",
    row_direction="L",
    presentation_intent="FOR PRESENTATION",
    photometric="MONOCHROME2",
    rows=10,
    columns=10,
    frames=1,
    samples=1,
    bits_allocated=16,
    bits_stored=12,
    high_bit=11,
    signed=False,
    spacing=None,
)
BARE = replace(CHEST, body_part="", view_position="", row_direction="", presentation_intent="")


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"modality": "CR"},
        {"modality": ""},  # the SOP class tells
        {"body_part": "THORAX"},
        {"body_part": "PORT CHEST"},
        {"body_part": "", "region_codes": ("816094009",)},
        {"body_part": "", "described": ("CHEST", "SPINE")},
        {"body_part": "UNKNOWN"},
        {"view_position": "AP SUPINE"},
        {"view_position": "", "view_codes": ("272479007",), "row_direction": "P"},
    ],
)
def test_accepts(said):
    check_scope(replace(CHEST, **said))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"modality": "MR"}, "Modality is MR"),
        ({"modality": "DOE JANE"}, "Modality is not a listed term"),
        ({"modality": "", "sop_class": ""}, "Modality is absent"),
        ({"presentation_intent": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"frames": 2}, "Number of Frames is 2"),
        ({"body_part": "HAND"}, "Body Part Examined is HAND"),
        ({"body_part": "TSPINE"}, "Body Part Examined is TSPINE"),
        ({"body_part": "THORACIC SPINE"}, "SPINE"),
        ({"body_part": "CHEST_ABDOMEN"}, "ABDOMEN"),
        ({"body_part": "DOE JANE"}, "a part other than the chest"),
        ({"region_codes": ("69536005",)}, "a region other than the chest"),
        ({"body_part": "", "described": ("TEETH",)}, "description says TEETH"),
        ({"view_position": "LL"}, r"LL \(lateral\)"),
        ({"view_position": "AP LLD"}, r"LLD \(decubitus\)"),
        ({"view_position": "LAO"}, r"LAO \(oblique\)"),
        ({"view_position": "", "view_codes": ("399173006",)}, "codes a lateral view"),
        ({"view_position": "", "row_direction": "A"}, "front to back"),
    ],
)
def test_refuses_for_what_the_header_said(said, reason):
    with pytest.raises(OutOfScopeError, match=reason) as caught:
        check_scope(replace(CHEST, **said))
    assert "DOE" not in str(caught.value)


def test_what_was_taken_for_granted_is_told():
    check_scope(BARE)
    assert unstated(CHEST) == ()
    assert [note.split(":")[0] for note in unstated(BARE)] == [
        "body part not stated",
        "view not stated",
    ]
    assert unstated(None) == ("no DICOM header: taken for a frontal chest radiograph",)


def test_only_anatomy_leaves_free_text():
    assert anatomy_words(["Doe, Jane: chest pain", "LEFT KNEE 2 views"]) == ("CHEST", "KNEE")

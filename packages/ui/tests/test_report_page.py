"""The report of one page: whatever is told, one page; the overlay where routes are known."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from medqua.core.vision.image import ImageSpec
from medqua.ui.findings import Reading, Row
from medqua.ui.report_page import MARK, draw_report

PICTURE = np.linspace(0, 1, 200 * 300, dtype=np.float32).reshape(200, 300)
FACTS = {"Image (SHA-256)": "0" * 64, "Kind": "CR · CHEST"}
READING = Reading((Row("Edema", 0.2, 0.1),), "", (), {"Bundle": "x"}, 0.1)


def routes(layers: int) -> Any:
    """Tokens of which each adapter routed those of one column."""
    routed = [np.arange(64).reshape(8, 8) % 8 == layer % 8 for layer in range(layers)]
    told = [SimpleNamespace(routed=one) for one in routed]
    return cast("Any", SimpleNamespace(image=(224, 224), layers=tuple(told)))


def pages(page: bytes) -> int:
    return page.count(b"/Type /Page\n")


def pictures(page: bytes) -> int:
    return page.count(b"/Subtype /Image")


def test_a_report_is_one_page_however_many_findings_there_are():
    rows = tuple(Row(f"Finding {n} with a rather long name ☠", n / 50, n / 60) for n in range(50))
    notes = ("a note that is long " * 20,)
    reading = Reading(rows, "", notes, {"Bundle": "x" * 300}, 0.1)
    reading = replace(reading, routes=routes(36), image=ImageSpec())
    page = draw_report(PICTURE, reading, FACTS)
    assert pages(page) == 1
    assert "NOT FOR DIAGNOSIS" in MARK


@pytest.mark.parametrize("layers", [1, 3, 36])
def test_what_adapters_routed_stands_beside_the_picture(layers: int):
    with_routes = replace(READING, routes=routes(layers), image=ImageSpec())
    page = draw_report(PICTURE, with_routes, FACTS)
    assert (pages(page), pictures(page)) == (1, 2)


def test_a_model_that_tells_no_routes_leaves_the_picture_alone():
    assert pictures(draw_report(PICTURE, READING, FACTS)) == 1
    without_adapters = replace(READING, routes=routes(0), image=ImageSpec())
    assert pictures(draw_report(PICTURE, without_adapters, FACTS)) == 1


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (1, 1)])
def test_pictures_of_any_shape_fit(shape: tuple[int, int]):
    with_routes = replace(READING, routes=routes(3), image=ImageSpec())
    page = draw_report(np.full(shape, 0.5, np.float32), with_routes, FACTS)
    assert (pages(page), pictures(page)) == (1, 2)


def test_a_refusal_is_told_in_place_of_findings():
    refused = Reading((), "it is a leg", (), {}, 0.1)
    assert pages(draw_report(PICTURE, refused, FACTS)) == 1

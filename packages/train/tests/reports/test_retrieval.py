"""Ranks against a plain count, chance against simulation and closed forms, and what ties earn."""

import numpy as np
import pytest

from medqua.core.errors import ShapeError
from medqua.train.reports.measure import best_thresholds, gallery
from medqua.train.reports.retrieval import (
    beyond_the_text,
    by_findings,
    chance,
    found,
    ranks,
)
from medqua.train.statistics.resampling import Resampling

PLAN = Resampling(300, 0.95, 0)


def test_a_rank_is_the_place_of_the_best_hit():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 12))
    hits = rng.random((40, 12)) < 0.2
    hits[:, 3] = True
    for row, hit, rank in zip(scores, hits, ranks(scores, hits), strict=True):
        order = np.argsort(-row)
        assert rank == 1 + int(np.flatnonzero(hit[order])[0])


def test_a_score_that_tells_nothing_gains_nothing():
    hits = np.eye(6, dtype=bool)
    assert ranks(np.zeros((6, 6)), hits).tolist() == [6] * 6
    result = found(np.zeros((6, 6)), hits, range(6), PLAN)
    assert (result.recall[0], result.median) == (0.0, 6.0)


def test_a_score_that_tells_all_finds_all():
    hits = np.eye(6, dtype=bool)
    result = found(hits.astype(float), hits, range(6), PLAN)
    assert result.recall == (1.0, 1.0, 1.0)
    assert result.reciprocal == result.median == 1.0
    assert result.median_interval.bounds == (1.0, 1.0)


def test_one_hit_by_chance_has_closed_forms():
    texts = 20
    result = chance(np.eye(texts, dtype=bool))
    assert result.recall == pytest.approx((1 / texts, 5 / texts, 10 / texts))
    assert result.reciprocal == pytest.approx((1 / np.arange(1, texts + 1)).sum() / texts)
    assert result.median == 10


def test_several_hits_by_chance_are_those_of_random_orders():
    rng = np.random.default_rng(1)
    hits = rng.random((30, 15)) < 0.25
    hits[:, 0] = True
    drawn = np.stack([ranks(rng.random(hits.shape), hits) for _ in range(1000)])
    result = chance(hits)
    assert result.recall == pytest.approx([(drawn <= cut).mean() for cut in (1, 5, 10)], abs=0.01)
    assert result.reciprocal == pytest.approx((1 / drawn).mean(), abs=0.01)
    assert abs(result.median - np.median(drawn)) <= 1


def test_a_cut_beyond_the_gallery_is_certain():
    assert chance(np.eye(3, dtype=bool)).recall == pytest.approx((1 / 3, 1.0, 1.0))


def test_patients_are_drawn_together():
    hits = np.eye(4, dtype=bool)
    scores = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    one = found(scores, hits, "aaaa", PLAN)
    assert one.recall_intervals[0].bounds == pytest.approx((0.75, 0.75))
    several = found(scores, hits, "abcd", PLAN).recall_intervals[0].bounds
    assert several is not None
    assert several[0] < 0.75 < several[1]


def test_the_text_alone_is_taken_off():
    short, image = np.array([5.0, 50.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
    nats = short - image  # each image tells one nat of one text
    alone = np.tile(short, (4, 1))
    np.testing.assert_allclose(beyond_the_text(nats, alone), image)
    mixed = np.stack([short, short + 1e4])  # half of p, far below what a float can hold
    np.testing.assert_allclose(beyond_the_text(nats, mixed), image + np.log(2))


def test_findings_find_the_text_that_states_them():
    labels = np.array([[1, 0], [0, 1], [2, -1]], np.int8)
    scores = by_findings(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0.5, 0.5]), labels)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    np.testing.assert_allclose(scores[:, 2], 0)
    np.testing.assert_allclose(scores[0, 0], 2 * np.log(0.9 / 0.5))


def test_a_threshold_is_that_of_the_best_f1():
    p = np.array([[0.9, 0.2], [0.8, 0.2], [0.3, 0.2], [0.1, 0.2]])
    y = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.int8)
    limits = best_thresholds(p, y)
    assert limits[0] == 0.3  # F1 0.8 with three stated, against 0.67 with one
    assert limits[1] > 1  # never true: never stated


def test_a_gallery_is_the_same_on_every_machine_and_of_whole_studies():
    studies = ["s3", "s1", "s3", "s2", "s1"]
    some = gallery(studies, 2)
    assert len({studies[i] for i in some}) == 2
    assert some == [i for i, name in enumerate(studies) if name in {studies[j] for j in some}]
    assert gallery(studies, 0) == list(range(5))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="a hit for each image"):
        ranks(np.zeros((2, 3)), np.zeros((2, 3), bool))
    with pytest.raises(ShapeError, match="equal shapes"):
        ranks(np.zeros((2, 3)), np.ones((2, 2), bool))

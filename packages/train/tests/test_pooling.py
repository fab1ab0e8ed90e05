import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from medqua.core.errors import ConfigError, ShapeError
from medqua.train.data.manifest import IGNORED
from medqua.train.evaluation.pooling import pool_studies
from medqua.train.recipe import load_recipe
from medqua.train.run import train

LOGITS = np.array([[1.0, -1.0], [3.0, 5.0], [-2.0, 0.5], [9.0, 9.0]])
TARGETS = np.array([[0, IGNORED], [1, 0], [0, IGNORED], [1, 1]], np.int8)
STUDIES = ["b", "a", "b", "a"]


def test_a_study_is_the_mean_or_the_maximum_of_its_images():
    mean = pool_studies(LOGITS, TARGETS, STUDIES, "mean")
    assert mean.logits.tolist() == [[-0.5, -0.25], [6.0, 7.0]]
    assert pool_studies(LOGITS, TARGETS, STUDIES, "max").logits.tolist() == [[1.0, 0.5], [9.0, 9.0]]
    assert mean.targets.tolist() == [[0, IGNORED], [1, 1]]
    assert mean.first == (0, 1)


def test_an_unreadable_image_says_nothing_about_its_study():
    pooled = pool_studies(LOGITS, TARGETS, STUDIES, "mean", unreadable=[3])
    assert pooled.logits[1].tolist() == [3.0, 5.0]
    assert pooled.targets[1].tolist() == [1, 0]
    nothing = pool_studies(LOGITS, TARGETS, STUDIES, "max", unreadable=[1, 3])
    assert nothing.targets[1].tolist() == [IGNORED, IGNORED]
    assert nothing.targets[0].tolist() == [0, IGNORED]


@given(st.permutations(range(4)), st.sampled_from(["mean", "max"]))
def test_the_order_of_images_does_not_matter(order, pool):
    one = pool_studies(LOGITS, TARGETS, STUDIES, pool)
    other = pool_studies(LOGITS[order], TARGETS[order], [STUDIES[i] for i in order], pool)
    rows = [[STUDIES[i] for i in order][p] for p in other.first]
    expected = [{"b": 0, "a": 1}[name] for name in rows]
    assert np.allclose(other.logits, one.logits[expected], rtol=1e-12)
    assert np.array_equal(other.targets, one.targets[expected])


def test_images_that_are_studies_stay_as_they_are():
    pooled = pool_studies(LOGITS, TARGETS, list("abcd"), "mean")
    assert np.array_equal(pooled.logits, LOGITS)
    assert np.array_equal(pooled.targets, TARGETS)


def test_what_cannot_be_pooled():
    with pytest.raises(ShapeError, match="3 studies for 4 images"):
        pool_studies(LOGITS, TARGETS, STUDIES[:3], "mean")
    with pytest.raises(ConfigError, match="did you mean 'study'"):
        load_recipe("mimic", ["evaluation.unit=studies"])


def test_a_run_counts_studies_where_it_is_asked(images, small, tmp_path):
    """Eighty images of forty patients, two a study."""
    rows = pl.read_csv(images / "labels.csv").with_columns(study=pl.col("patient_id"))
    for number in range(40):
        (images / f"second-{number}.png").write_bytes((images / f"{number}.png").read_bytes())
    second = rows.with_columns(pl.format("second-{}", "file").alias("file"))
    pl.concat([rows, second]).write_csv(images / "studies.csv")
    keys = [*small, f"data.root={images}", "data.table=studies.csv", "data.keep_in_memory=false"]
    keys += ["optim.max_steps=1", "evaluation.unit=study", "evaluation.untrained=false"]
    keys += ["evaluation.plots=false", f"data.cache={tmp_path / 'cache'}"]
    test = train(load_recipe("folder", keys), tmp_path / "run", Console(quiet=True))["test"]
    assert test["unit"] == "study"
    assert test["images"] == 2 * test["studies"]
    assert sum(test["per_label"]["Mass"][n] for n in ("positives", "negatives")) == test["studies"]
    predictions = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert predictions.filter(pl.col("split") == "test").height == test["images"]

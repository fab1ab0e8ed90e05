import polars as pl
import pytest

from medqua.core.errors import ConfigError, DataError
from medqua.train.data.manifest import Manifest
from medqua.train.data.selection import select, share_of_patients


def manifest(n: int = 120) -> Manifest:
    rows = [
        {
            "image": f"{'north' if i % 3 else 'south'}/{i}.png",
            "patient_id": f"p{i // 2}",
            "split": ("train", "train", "train", "validate", "test")[i // 2 % 5],
            "view": "AP" if i % 2 else "PA",
            "Mass": i % 2,
        }
        for i in range(n)
    ]
    return Manifest.of(pl.DataFrame(rows), "made up")


def test_trains_on_one_view_and_tests_on_the_other():
    whole = manifest()
    found = select(whole, ("view=PA",), ("view=AP",))
    assert set(found.split("train")["view"]) == set(found.split("validate")["view"]) == {"PA"}
    assert set(found.split("test")["view"]) == {"AP"}
    assert found.split("train").height * 2 == whole.split("train").height
    assert found.source == "made up, trained on view=PA, tested on view=AP"


def test_a_site_is_a_pattern_of_paths_and_conditions_add_up():
    found = select(manifest(), ("image~^north/", "view=PA|AP"), ())
    assert all(name.startswith("north/") for name in found.split("train")["image"])
    assert any(name.startswith("south/") for name in found.split("test")["image"])


def test_a_whole_site_is_tested_on_and_its_patients_are_nowhere_else():
    whole = manifest()
    south = set(whole.frame.filter(pl.col("image").str.contains("^south/"))["image"])
    found = select(whole, ("image~^north/",), ("image~^south/",), whole_site=True)
    assert set(found.split("test")["image"]) == south
    patients = set(found.split("test")["patient_id"])
    assert len(patients) < whole.frame["patient_id"].n_unique()  # a third has images of both sites
    rest = [found.split("train"), found.split("validate")]
    assert not patients & {name for part in rest for name in part["patient_id"]}
    assert all(name.startswith("north/") for part in rest for name in part["image"])
    assert found.source.endswith("tested on image~^south/, all of it")


def test_a_whole_site_without_a_name_is_refused():
    with pytest.raises(ConfigError, match=r"without data\.test_on"):
        select(manifest(), (), (), whole_site=True)


def test_without_conditions_nothing_changes():
    whole = manifest()
    assert select(whole, (), ()) is whole


def test_shares_of_patients_are_nested_and_leave_the_test_whole():
    whole = manifest()
    kept = {}
    for share in (0.01, 0.1, 0.5, 1.0):
        part = share_of_patients(whole, share)
        kept[share] = set(part.split("train")["patient_id"])
        assert part.split("test").equals(whole.split("test"))
        assert part.split("validate").equals(whole.split("validate"))
    assert [len(one) for one in kept.values()] == [1, 4, 18, 36]
    assert kept[0.01] < kept[0.1] < kept[0.5] < kept[1.0]


@pytest.mark.parametrize("text", ["view", "hospital=A", "image~(", "=PA"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="condition"):
        select(manifest(), (text,), ())


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="no image left in the 'test' split"):
        select(manifest(), (), ("view=LATERAL",))

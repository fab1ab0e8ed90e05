import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqua.core.errors import ConfigError
from medqua.train.data.split import SplitFractions, split_by_hash, split_stratified

PATIENTS = [f"patient {i}" for i in range(4000)]


def test_fractions_are_met_on_average():
    split = list(split_by_hash(PATIENTS, SplitFractions(0.15, 0.2), seed=0).values())
    assert split.count("test") / len(split) == pytest.approx(0.2, abs=0.025)  # 4 sigma
    assert split.count("validate") / len(split) == pytest.approx(0.15, abs=0.025)


@settings(deadline=None)
@given(st.sets(st.text(max_size=8), min_size=1), st.text(max_size=8), st.integers(0, 9))
def test_more_patients_move_nobody(patients, newcomer, seed):
    before = split_by_hash(sorted(patients), SplitFractions(), seed)
    after = split_by_hash(sorted(patients | {newcomer}), SplitFractions(), seed)
    assert before.items() <= after.items()


def test_another_seed_is_another_split():
    assert split_by_hash(PATIENTS, SplitFractions(), 0) != split_by_hash(
        PATIENTS, SplitFractions(), 1
    )


def test_the_split_of_a_name_is_fixed():  # changing the hash would move everybody's patients
    split = split_by_hash(["NIH-13", "NIH-30", "NIH-118"], SplitFractions(), 0)
    assert split == {"NIH-13": "validate", "NIH-30": "train", "NIH-118": "validate"}


def test_rare_findings_reach_every_split():
    labels = {p: frozenset({"Hernia"} if i < 20 else ()) for i, p in enumerate(PATIENTS)}
    for seed in range(20):
        split = split_stratified(labels, SplitFractions(0.15, 0.2), seed)
        with_hernia = [split[p] for p in PATIENTS[:20]]
        assert {name: with_hernia.count(name) for name in ("test", "validate", "train")} == {
            "test": 4,
            "validate": 3,
            "train": 13,
        }


@pytest.mark.parametrize(("validate", "test"), [(0.0, 0.2), (0.5, 0.5), (0.1, -0.1)])
def test_fractions_that_leave_a_split_empty_are_refused(validate, test):
    with pytest.raises(ConfigError, match="less than 1"):
        SplitFractions(validate, test)

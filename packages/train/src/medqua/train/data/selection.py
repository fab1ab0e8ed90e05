"""Parts of a manifest: one view or site to train on and another to test on, or fewer patients."""

import math
import re
from collections.abc import Sequence
from hashlib import blake2b

import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.train.data.manifest import KEYS, Manifest


def select(
    manifest: Manifest,
    train_on: Sequence[str],
    test_on: Sequence[str],
    *,
    whole_site: bool = False,
) -> Manifest:
    """Keep what the conditions allow.

    Args:
        manifest: The data set.
        train_on: Conditions on train and validate, `COLUMN=VALUE|VALUE` or `COLUMN~REGEX` (found
            anywhere), COLUMN one of the manifest's keys; all must hold. Empty keeps everything.
        test_on: Conditions on test.
        whole_site: Test on all images that `test_on` chooses, of whichever split; their patients
            leave train and validate. Another site is small, and its own split not needed.

    Returns:
        The manifest itself, or its part, whose source tells the conditions.

    Raises:
        ConfigError: A condition is none, or `whole_site` without conditions on test.
        DataError: A split has no image left.
    """
    if whole_site and not test_on:
        raise ConfigError("data.test_whole_site without data.test_on: tell which site to test on")
    if not train_on and not test_on:
        return manifest
    testing = pl.col("split") == "test"
    if whole_site:
        frame = _with_whole_site(manifest.frame, _all(train_on), _all(test_on))
    else:
        frame = manifest.frame.filter(
            pl.when(testing).then(_all(test_on)).otherwise(_all(train_on))
        )
    told = [
        f"{word} on {' and '.join(on)}"
        for word, on in (("trained", train_on), ("tested", test_on))
        if on
    ]
    part = f"{manifest.source}, {', '.join(told)}" + (", all of it" if whole_site else "")
    for split in ("train", "validate", "test"):
        if not frame.filter(pl.col("split") == split).height:
            raise DataError(f"{part}: no image left in the {split!r} split")
    return Manifest.of(frame, part)


def share_of_patients(manifest: Manifest, share: float) -> Manifest:
    """Keep a share of the training patients, at least one; validation and test stay whole.

    The patients are those with the smallest hashes: equal on every machine, and a smaller share is
    part of a larger one. Images without a patient stand for themselves.

    Args:
        manifest: The data set.
        share: Share of the patients, (0, 1].
    """
    train = manifest.frame.filter(pl.col("split") == "train")
    whose = train.select(pl.coalesce("patient_id", "image").alias("whose"))["whose"]
    ranked = sorted(whose.unique().to_list(), key=_hash)
    kept = ranked[: max(1, math.ceil(share * len(ranked)))]
    frame = manifest.frame.filter(
        (pl.col("split") != "train")
        | pl.coalesce("patient_id", "image").is_in(pl.Series(kept, dtype=pl.String).implode())
    )
    return Manifest.of(frame, f"{manifest.source}, {share:.3g} of the training patients")


def _with_whole_site(frame: pl.DataFrame, train_on: pl.Expr, test_on: pl.Expr) -> pl.DataFrame:
    """Everything of the other site as test split, and the rest without that site's patients."""
    whose = pl.coalesce("patient_id", "image")
    tested = frame.filter(test_on)
    rest = frame.filter((pl.col("split") != "test") & train_on).filter(
        ~whose.is_in(tested.select(whose).to_series().implode())
    )
    split = pl.lit("test").cast(frame["split"].dtype).alias("split")
    return pl.concat([rest, tested.with_columns(split)])


def _hash(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8, person=b"patients").digest()


def _all(conditions: Sequence[str]) -> pl.Expr:
    """All conditions as one expression; null counts as not met."""
    met = [_condition(text).fill_null(value=False) for text in conditions]
    return pl.all_horizontal(met) if met else pl.lit(value=True)


def _condition(text: str) -> pl.Expr:
    found = re.fullmatch(r"\s*(\w+)\s*([=~])(.+)", text)
    if found is None or found[1] not in KEYS:
        raise ConfigError(
            f"condition {text!r}: needed COLUMN=VALUE or COLUMN~REGEX with COLUMN one of "
            f"{', '.join(KEYS)}"
        )
    column, how, value = found.groups()
    if how == "=":
        return pl.col(column).is_in([part.strip() for part in value.split("|")])
    try:
        re.compile(value)
        pl.Series([""]).str.contains(value)
    except (re.error, pl.exceptions.ComputeError) as error:
        raise ConfigError(f"condition {text!r}: no regular expression ({error})") from error
    return pl.col(column).str.contains(value)

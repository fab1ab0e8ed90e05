"""From a recipe's data section to the three splits, ready to be read."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import polars as pl

from medqua.core.errors import ConfigError, DataError
from medqua.train.data.cache import ImageCache, build_cache
from medqua.train.data.chestmnist import fetch_chestmnist, read_chestmnist
from medqua.train.data.chexpert import read_chexpert
from medqua.train.data.dataset import RadiographDataset, image_names
from medqua.train.data.folder import read_folder
from medqua.train.data.images import FolderStore, ImageStore
from medqua.train.data.manifest import SPLITS, Manifest
from medqua.train.data.mimic import read_mimic
from medqua.train.data.nih import read_nih
from medqua.train.data.phantom import is_phantom_tree
from medqua.train.data.sections import (
    ChestMnistData,
    ChexpertData,
    DataSection,
    FolderData,
    MimicData,
    NihData,
    VindrData,
)
from medqua.train.data.selection import select, share_of_patients
from medqua.train.data.vindr import read_vindr
from medqua.train.phantoms import phantom_tree
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe

Say = Callable[[str], None]

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A bar of that name and length; yields what is to be called with the number done."""


def _no_progress(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class DataSet:
    """A data set that is there."""

    manifest: Manifest
    """Its images, after absent ones and those beyond `data.limit` were left out."""

    store: ImageStore
    """Where they are."""

    absent: tuple[str, ...] = ()
    """Images that the tables name and that are not there (`data.skip_unreadable`)."""

    cached: Manifest | None = None
    """What `data.cache` is to hold: all images that are there, so that runs on parts of a data set
    share a cache; with `data.limit` only those of the manifest."""

    synthetic: bool = False
    """Whether the images are phantoms."""


def open_data_set(data: DataSection, say: Say) -> DataSet:
    """Find, check and cut down a data set.

    Args:
        data: The recipe's section.
        say: Told what takes long or must be known.

    Raises:
        ConfigError: `data.root` is missing.
        DataError: The data set is absent, malformed, or lacks images.
    """
    found = _opened(data, say)
    absent: list[str] = []
    if data.check_images:
        with distributed.main_first() as main:
            absent = found.store.absent(image_names(found.manifest.frame)) if main else []
        absent = distributed.from_main(absent)
    if absent and not data.skip_unreadable:
        raise DataError(
            f"{found.manifest.source} names {len(absent):,} images that are not there, among them "
            f"{absent[0]}: complete the download, set data.root (or data.image_root) to where they "
            "are, or train without them by data.skip_unreadable=true"
        )
    manifest = found.manifest.drop(absent) if absent else found.manifest
    whole = manifest
    manifest = select(manifest, data.train_on, data.test_on, whole_site=data.test_whole_site)
    manifest = share_of_patients(manifest, data.patients) if data.patients < 1 else manifest
    manifest = _limited(manifest, data.limit) if data.limit else manifest
    for split in SPLITS:
        manifest.split(split)
    cached = replace(whole, frame=manifest.frame) if data.limit else whole
    return replace(found, manifest=manifest, absent=tuple(absent), cached=cached)


def make_splits(
    recipe: Recipe, data: DataSet, progress: Progress = _no_progress
) -> dict[str, RadiographDataset]:
    """The data sets of train, validate and test, after `data.cache` was written where it is asked.

    Args:
        recipe: The run.
        data: From `open_data_set`.
        progress: Shows how far writing the cache is.

    Raises:
        UnreadableImageError: An image cannot be read into the cache.
        DataError: The cache cannot be written, is damaged, or is of other files.
    """
    section = recipe.data
    cache = _cache(recipe, data, progress) if section.cache else None
    result = {}
    for split in SPLITS:
        rows = data.manifest.split(split)
        training = split == "train"
        names = image_names(rows)
        result[split] = RadiographDataset(
            names,
            section.policy(training=training).targets(rows.select(data.manifest.labels)),
            data.store,
            recipe.image,
            augmentation=recipe.augmentation if training else None,
            seed=recipe.run.seed,
            skip_unreadable=section.skip_unreadable,
            cache=cache.images(names) if cache is not None else None,
            labels=data.manifest.labels,
        )
    return result


def _cache(recipe: Recipe, data: DataSet, progress: Progress) -> ImageCache:
    """The cache of a data set, written by all processes together and compared with its sources."""
    section, whole = recipe.data, data.cached or data.manifest
    images = image_names(whole.frame)
    with progress("Decoding images into data.cache", len(images)) as advance:
        cache = build_cache(
            Path(section.cache),
            data.store,
            recipe.image,
            whole.source,
            images,
            workers=section.workers,
            skip_unreadable=section.skip_unreadable,
            advance=advance,
        )
    if not section.check_images:
        return cache
    with distributed.main_first() as main:
        changed = cache.changed(data.store) if main else []
    changed = distributed.from_main(changed)
    if changed:
        raise DataError(
            f"{len(changed):,} images have another size than when the cache {cache.folder} was "
            f"written, among them {changed[0]}: delete that folder, or give another data.cache"
        )
    return cache


def _opened(data: DataSection, say: Say) -> DataSet:
    """The data set as it is."""
    root = Path(data.root).expanduser()
    if isinstance(data, MimicData):
        synthetic = not data.root
        root = phantom_tree(data.phantoms, say) if synthetic else root
        images = Path(data.image_root).expanduser() if data.image_root else root
        manifest = read_mimic(
            root,
            views=data.views,
            labels=data.labels,
            source=data.source,
            label_source=data.label_source,
            test_labels=data.test_labels,
        )
        if synthetic := synthetic or is_phantom_tree(root):
            manifest = replace(manifest, source=f"PHANTOMS in the layout of {manifest.source}")
        return DataSet(manifest, FolderStore(images), synthetic=synthetic)
    if not data.root:
        raise ConfigError("data.root is not given: set it to the folder of the data set")
    if isinstance(data, ChestMnistData):
        with distributed.main_first():
            path = fetch_chestmnist(root, data.pixels, allow_download=data.download, say=say)
            manifest, store = read_chestmnist(path, data.pixels, check_md5=data.check_md5)
        return DataSet(manifest, store)
    if isinstance(data, FolderData):
        manifest = read_folder(
            root,
            table=data.table,
            columns=data.columns,
            labels=data.labels,
            other_findings=data.other_findings,
            views=data.views,
            fractions=data.fractions,
            seed=data.split_seed,
            stratify=data.stratify,
        )
        return DataSet(manifest, FolderStore(root))
    published = _published(data, root)
    if published is not None:
        return DataSet(published, FolderStore(root))
    raise ConfigError(f"data.kind = {type(data).__name__}: no reader for it")


def _published(data: DataSection, root: Path) -> Manifest | None:
    """The manifest of NIH ChestX-ray14, CheXpert or VinDr-CXR; None for another data set."""
    if isinstance(data, NihData):
        return read_nih(
            root,
            labels=data.labels,
            views=data.views,
            validate=data.validate,
            seed=data.split_seed,
        )
    if isinstance(data, ChexpertData):
        return read_chexpert(
            root,
            labels=data.labels,
            views=data.views,
            test=data.test,
            validate=data.validate,
            seed=data.split_seed,
        )
    if isinstance(data, VindrData):
        return read_vindr(
            root,
            labels=data.labels,
            source=data.source,
            validate=data.validate,
            seed=data.split_seed,
        )
    return None


def _limited(manifest: Manifest, limit: int) -> Manifest:
    """The same images on every machine, `limit` of each split."""
    order = [blake2b(name.encode(), digest_size=8).digest() for name in manifest.frame["image"]]
    chosen = (
        manifest.frame.with_columns(pl.Series("order", order, dtype=pl.Binary))
        .with_columns(pl.col("order").rank("ordinal").over("split").alias("place"))
        .filter(pl.col("place") <= limit)
        .drop("order", "place")
    )
    return Manifest.of(chosen, manifest.source)

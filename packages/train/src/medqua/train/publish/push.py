"""Passing a bundle on: refused where the training data's terms forbid it, else sent to a hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqua.core.errors import BundleError, ConfigError
from medqua.core.model.bundle import Bundle
from medqua.train.publish.licences import LICENCES, SYNTHETIC

CREDENTIALED = (
    "the PhysioNet Credentialed Health Data Use Agreement forbids sharing access to the data with "
    "anyone else, and PhysioNet has models derived from MIMIC treated as containing sensitive "
    "information, shared on PhysioNet alone under the agreement of the source (guidelines of "
    "24 April 2024)"
)
"""Why weights that saw credentialed data stay."""

FREE = (SYNTHETIC, LICENCES["chestmnist"], LICENCES["nih"])
"""Terms that let weights be passed on, with attribution."""


@dataclass(frozen=True)
class Parcel:
    """What would be sent."""

    folder: Path
    """The bundle."""
    repository: str
    """`OWNER/NAME` on the hub."""
    files: tuple[str, ...]
    """Relative paths."""
    size: int
    """Bytes of all files together."""


def pack(bundle: Path, repository: str, *, permitted: bool = False) -> Parcel:
    """Verify a bundle, and refuse to pass on what must stay.

    Args:
        bundle: Folder of the bundle, or of the run that holds it.
        repository: `OWNER/NAME`.
        permitted: The user says that terms which this package does not know allow it; it does not
            lift what is known to be forbidden.

    Raises:
        BundleError: It is no bundle, is damaged, or has no model card.
        ConfigError: The terms of its training data forbid passing it on, or are not known to allow
            it; or the repository's name is none.
    """
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name:
        raise ConfigError(f"{repository!r} is no repository: needed OWNER/NAME")
    folder = bundle / "bundle" if (bundle / "bundle" / "bundle.json").is_file() else bundle
    manifest = Bundle.verify(folder)
    source = str(manifest.training_data.get("name", ""))
    if manifest.license != SYNTHETIC and _is_credentialed(source, manifest.license):
        raise ConfigError(
            f"this bundle was trained on {source} and must not be pushed: {CREDENTIALED}"
        )
    if manifest.license not in FREE and not permitted:
        raise ConfigError(
            f"this bundle was trained on {source}, whose terms are not known to allow passing its "
            f"weights on ({manifest.license}): read them, and say --permitted if they do"
        )
    if "README.md" not in manifest.files:
        raise BundleError(f"{folder} has no model card (README.md): train again to get one")
    files = tuple(sorted([*manifest.files, "bundle.json"]))
    size = sum((folder / path).stat().st_size for path in files)
    return Parcel(folder, repository, files, size)


def send(parcel: Parcel, *, private: bool, api: Any = None) -> str:
    """Make the repository if need be, and upload the bundle as one commit.

    Args:
        parcel: From `pack`.
        private: Whether a new repository is.
        api: A `huggingface_hub.HfApi`; one with the user's own token by default.

    Returns:
        Where it is.

    Raises:
        ConfigError: The hub is out of reach, or does not let the user in.
    """
    from huggingface_hub import HfApi

    hub = api or HfApi()
    try:
        hub.create_repo(parcel.repository, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=parcel.repository,
            folder_path=str(parcel.folder),
            allow_patterns=list(parcel.files),
            commit_message="Add the bundle",
        )
    except Exception as error:  # of whichever HTTP library the client is built on
        raise ConfigError(
            f"the hub does not take {parcel.repository} ({type(error).__name__}): check the "
            "network and `hf auth login`"
        ) from error
    return str(commit.commit_url)


def _is_credentialed(source: str, licence: str) -> bool:
    """Whether the data came under PhysioNet's agreement, by its terms or its name."""
    name = source.casefold()
    return "physionet" in licence.casefold() or "mimic" in name or "vindr" in name

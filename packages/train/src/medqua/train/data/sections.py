"""The `[data]` section of a recipe: what each kind of data set may be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from medqua.core.errors import ConfigError
from medqua.core.findings.labels import CHEXPERT_NAMES, NIH_NAMES
from medqua.train.data.chexpert import TestTable
from medqua.train.data.folder import FolderColumns
from medqua.train.data.manifest import Blank, LabelPolicy, Uncertain
from medqua.train.data.mimic import LABELS, ImageSource, LabelSource, TestLabels
from medqua.train.data.split import SplitFractions
from medqua.train.data.tables import FRONTAL
from medqua.train.data.vindr import VINDR_NAMES, ImageFile
from medqua.train.typed import at_least


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """What every data set has."""

    root: str = ""
    """Folder (or archive) of the data set."""

    uncertain: Uncertain = "ignore"
    """What -1 counts as in training: masked, or U-Zeros, U-Ones of CheXpert."""

    uncertain_in_evaluation: Uncertain = "ignore"
    """The same for validation and test."""

    blank: Blank = "zero"
    """What a label that is not mentioned counts as, everywhere."""

    check_images: bool = True
    """Look for every image before training starts; off saves one stat call an image."""

    skip_unreadable: bool = False
    """Go on without images that are absent or unreadable, count them and list them in the run."""

    keep_in_memory: bool = False
    """Decode every image once, before training: 1 byte a pixel for 8-bit images, 4 for others."""

    cache: str = ""
    """Folder for decoded images, written once and then mapped by every process of every run; empty
    decodes each image whenever it is needed."""

    limit: int = 0
    """Images of each split to use, chosen by a hash of their name; 0 is all. For quick tries."""

    patients: float = 1.0
    """Share of the training patients, (0, 1], chosen by a hash: smaller shares are within larger
    ones. Validation and test stay whole."""

    train_on: tuple[str, ...] = ()
    """Conditions on images of train and validate, all of them needed: `view=PA` (one of several:
    `view=AP|PA`), `image~REGEX`."""

    test_on: tuple[str, ...] = ()
    """The same for the test split: another view or site, for a cross-site test."""

    test_whole_site: bool = False
    """Test on every image that `test_on` chooses, of whichever split; its patients leave train and
    validate."""

    workers: int = 0
    """Processes that read images for each training process; 0 reads in the training process."""

    def __post_init__(self) -> None:
        self.policy(training=True)
        self.policy(training=False)
        at_least("data.limit", self.limit, 0)
        at_least("data.workers", self.workers, 0)
        if not 0 < self.patients <= 1:
            raise ConfigError(f"data.patients = {self.patients}: needed a share in (0, 1]")
        if self.keep_in_memory and self.workers:
            raise ConfigError(
                f"data.keep_in_memory with data.workers = {self.workers}: images in memory need no "
                "workers; set data.workers=0"
            )

    def policy(self, *, training: bool) -> LabelPolicy:
        """How labels become targets, in training or in evaluation."""
        return LabelPolicy(self.uncertain if training else self.uncertain_in_evaluation, self.blank)


@dataclass(frozen=True, kw_only=True)
class PhantomSection:
    """The synthetic radiographs that stand in where no MIMIC root is given."""

    patients: int = 600
    """Synthetic patients."""

    size: int = 224
    """Side of the images, in pixels."""

    seed: int = 0
    """Seed of everything about them."""

    dicom: bool = False
    """Write DICOM files beside the JPGs; `data.source=dicom` needs them."""

    def __post_init__(self) -> None:
        at_least("data.phantoms.patients", self.patients, 10)
        at_least("data.phantoms.size", self.size, 64)


@dataclass(frozen=True, kw_only=True)
class MimicData(DataSection):
    """MIMIC-CXR-JPG 2.1.0; phantoms in the same layout when `root` is empty."""

    kind: Literal["mimic"] = "mimic"
    """Which data set it is."""

    image_root: str = ""
    """Folder that holds `files/`, where it is not `root`: a MIMIC-CXR tree of DICOM, say."""

    source: ImageSource = "jpg"
    """Which files to read."""

    views: tuple[str, ...] = FRONTAL
    """`ViewPosition` values to keep; empty keeps every view."""

    labels: tuple[str, ...] = LABELS
    """Labels, in the order of logits."""

    label_source: LabelSource = "chexpert"
    """Which labeler's table to read."""

    test_labels: TestLabels = "same"
    """`radiologist`: test labels from `mimic-cxr-2.1.0-test-set-labeled.csv`."""

    phantoms: PhantomSection = field(default_factory=PhantomSection)
    """What to generate when `root` is empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.labels:
            raise ConfigError("data.labels is empty: name at least one label")
        if self.source == "dicom" and not self.root and not self.phantoms.dicom:
            raise ConfigError(
                "data.source=dicom without data.root: phantoms come as DICOM only with "
                "data.phantoms.dicom=true"
            )
        if self.image_root and not self.root:
            raise ConfigError("data.image_root without data.root: the tables are under data.root")


@dataclass(frozen=True, kw_only=True)
class ChestMnistData(DataSection):
    """ChestMNIST of MedMNIST v2 and later."""

    kind: Literal["chestmnist"] = "chestmnist"
    """Which data set it is."""

    pixels: Literal[28, 64, 128, 224] = 64
    """Side of the published images."""

    download: bool = False
    """Download the archive into `root` if it is not there."""

    check_md5: bool = True
    """Compare the archive with its published sum."""


@dataclass(frozen=True, kw_only=True)
class FolderData(DataSection):
    """Images with a table of labels."""

    kind: Literal["folder"] = "folder"
    """Which data set it is."""

    table: str = ""
    """CSV file relative to `root`; found by name if empty."""

    columns: FolderColumns = field(default_factory=FolderColumns)
    """Which columns are what."""

    labels: tuple[str, ...] = ()
    """Label columns, in the order of logits; empty takes those with known names."""

    other_findings: tuple[str, ...] = ()
    """What a column `Finding Labels` may name beside labels and NIH's findings, without learning
    it; any other name is refused."""

    views: tuple[str, ...] = FRONTAL
    """Views to keep, where the table tells; empty keeps every view."""

    fractions: SplitFractions = field(default_factory=SplitFractions)
    """Patients held out, where the table has no split."""

    split_seed: int = 0
    """Seed of the split."""

    stratify: bool = False
    """Split the patients of each finding in proportion."""


@dataclass(frozen=True, kw_only=True)
class PublishedData(DataSection):
    """A published data set with a test split of its own."""

    validate: float = 0.1
    """Share of the training patients held out for calibration and the choice of a checkpoint,
    within (0, 1)."""

    split_seed: int = 0
    """Seed of the hash that chooses them."""

    labels: tuple[str, ...] = ()
    """Labels, in the order of logits; names of another data set that mean exactly the same do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.validate < 1:
            raise ConfigError(f"data.validate = {self.validate}: needed a share within (0, 1)")
        if not self.labels:
            raise ConfigError("data.labels is empty: name at least one label")


@dataclass(frozen=True, kw_only=True)
class NihData(PublishedData):
    """NIH ChestX-ray14 in its official split."""

    kind: Literal["nih"] = "nih"
    """Which data set it is."""

    labels: tuple[str, ...] = NIH_NAMES
    """Labels, in the order of logits; CheXpert's names that mean exactly the same do."""

    views: tuple[str, ...] = FRONTAL
    """Views to keep; empty keeps both."""


@dataclass(frozen=True, kw_only=True)
class ChexpertData(PublishedData):
    """CheXpert."""

    kind: Literal["chexpert"] = "chexpert"
    """Which data set it is."""

    labels: tuple[str, ...] = CHEXPERT_NAMES
    """Labels, in the order of logits; NIH's names that mean exactly the same do."""

    views: tuple[str, ...] = FRONTAL
    """Views to keep; empty keeps lateral ones too."""

    test: TestTable = "valid"
    """`valid`: test on `valid.csv`, validate on patients of `train.csv`; `test`: test on
    `test.csv` or `test_labels.csv`, validate on `valid.csv`."""


@dataclass(frozen=True, kw_only=True)
class VindrData(PublishedData):
    """VinDr-CXR."""

    kind: Literal["vindr"] = "vindr"
    """Which data set it is."""

    labels: tuple[str, ...] = VINDR_NAMES
    """Labels, in the order of logits; names of CheXpert and NIH that mean the same do."""

    source: ImageFile = "dicom"
    """Extension of the images: as published, or after a conversion."""


DATA_KINDS: Mapping[str, type[DataSection]] = {
    "mimic": MimicData,
    "chestmnist": ChestMnistData,
    "folder": FolderData,
    "nih": NihData,
    "chexpert": ChexpertData,
    "vindr": VindrData,
}

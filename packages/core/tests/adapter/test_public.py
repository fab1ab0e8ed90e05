from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import medqua.core
import medqua.core.adapter as adapter

NAMES = ["ClassicalShadow", "EntropyRouter", "QuasarConfig", "QuasarModel", "find_decoder_layers"]


def test_public_names() -> None:
    for name in NAMES:
        assert getattr(medqua.core, name) is getattr(adapter, name)
        assert name in medqua.core.__all__
    assert sorted(adapter.__all__) == adapter.__all__
    assert all(hasattr(adapter, name) for name in adapter.__all__)


def test_peft_knows_the_method() -> None:
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType("QUASAR")] is adapter.QuasarModel

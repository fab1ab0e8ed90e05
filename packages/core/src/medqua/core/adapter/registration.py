"""Making `QUASAR` a method that PEFT knows, so that its own verbs work on ours.

PEFT's method names are an enum without a way in from outside; the member is added by hand, once.
The versions of PEFT where this holds are pinned, and the import fails loudly elsewhere.
"""

from peft.utils import PeftType

from medqua.core.errors import BackboneError

NAME = "QUASAR"
"""Value of `peft_type` in `adapter_config.json`."""


def add_peft_type() -> PeftType:
    """Add the enum member `PeftType.QUASAR` unless it is there; return it.

    Raises:
        BackboneError: The installed PEFT builds its enum in another way.
    """
    if NAME in PeftType.__members__:
        return PeftType[NAME]
    member = str.__new__(PeftType, NAME)
    member._name_ = NAME
    member._value_ = NAME
    PeftType._member_map_[NAME] = member
    PeftType._value2member_map_[NAME] = member
    PeftType._member_names_.append(NAME)
    type.__setattr__(PeftType, NAME, member)
    if PeftType(NAME) is not member or PeftType[NAME] is not member or member not in list(PeftType):
        raise BackboneError(
            "the installed peft does not take a new PeftType: install the version that "
            "medqua-core pins"
        )
    return member

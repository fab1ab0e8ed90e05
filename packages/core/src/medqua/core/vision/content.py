"""Whether pixels hold anything that findings could be named of.

A model gives fourteen probabilities of anything, of a black square too. What cannot show a chest is
refused before a model sees it.
"""

import numpy as np
import numpy.typing as npt

from medqua.core.errors import OutOfScopeError

LEAST_SIDE = 64
"""Fewest rows, and fewest columns, of an image, in pixels."""

LARGEST_ASPECT = 4.0
"""Most times that the longer side may be the shorter one."""


def check_content(grey: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
    """Refuse an image that holds one grey value, or is too small or too narrow to show a chest.

    Args:
        grey: Grey levels `[H, W]`, of any type.

    Raises:
        OutOfScopeError: It does, or is.
    """
    height, width = grey.shape
    if min(height, width) < LEAST_SIDE:
        raise OutOfScopeError(
            f"the image has {height} rows and {width} columns; needed are at least {LEAST_SIDE} of "
            "each: send it in its own size"
        )
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        raise OutOfScopeError(
            f"the image has {height} rows and {width} columns; one side may be {LARGEST_ASPECT:g} "
            "times the other at most: send one whole radiograph"
        )
    check_levels(grey)


def check_levels(grey: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> None:
    """Refuse an image that holds one grey value.

    Args:
        grey: Grey levels `[H, W]`, of any type.

    Raises:
        OutOfScopeError: It does.
    """
    if grey.min() == grey.max():
        raise OutOfScopeError(
            "the image holds one grey value and shows nothing; send the radiograph itself"
        )

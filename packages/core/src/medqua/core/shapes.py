"""Shapes in annotations of arrays, for modules that start fast.

Under pytest, which loads jaxtyping first, these are jaxtyping's own and are checked; elsewhere they
are the array's type alone, and jaxtyping, a quarter of a second of a start, is left out. Modules
that load torch take jaxtyping's own.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float32 as Float32
    from jaxtyping import Int64 as Int64
else:

    class _Unchecked:
        """Stands for its array's type: `Bool[np.ndarray, "rows"]` is `np.ndarray`."""

        def __class_getitem__(cls, item: tuple[type, str]) -> Any:
            return item[0]

    Bool = Float32 = Int64 = _Unchecked

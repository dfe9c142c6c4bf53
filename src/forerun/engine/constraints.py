"""What may follow a request's text, by a grammar: the contract between rounds and grammars.

Knows token trees and masks; must not know what a grammar is written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forerun.tree import TokenTree

Masks: TypeAlias = NDArray[np.bool_]


class Constraint(Protocol):
    """What may follow one request's text. To ask changes nothing: `text` is all that was generated
    so far, and the same text has the same answer, whatever was asked before."""

    def forced(self, text: Sequence[int], most: int) -> list[int]:
        """Tokens that very likely come next, for their bytes must; at most so many."""

    def allowed(self, text: Sequence[int], tree: TokenTree) -> Masks:
        """`[N V]` which tokens may follow each node along its own path, and all of them below a
        node that the path above it does not allow or that ends the text.

        Raises:
            GrammarError: the grammar grew too complex; of a drafted node no token is allowed then.
        """


class Grammar(Protocol):
    """A grammar ready for use, by any number of requests at a time."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text, allowed where the grammar may end."""

    def begin(self) -> Constraint:
        """What may follow an empty text of a new request."""

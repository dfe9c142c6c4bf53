"""Match: follow the target's own choices through the tree for as long as they were drafted."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.draft import Draft, Verdict
from forerun.protocols import Noise, Reads
from forerun.tree import Tokens


@dataclass(frozen=True, slots=True)
class Match:
    """Exact for any proposal: what is emitted is the target's choice at every node of the path."""

    @property
    def reads(self) -> Reads:
        """The target's own tokens."""
        return Reads.CHOICES

    def judge(self, draft: Draft, target: Tokens, noise: Noise) -> Verdict:  # noqa: ARG002
        """The longest path that agrees with choices `[N]`; the bonus is the choice at its end."""
        tokens, parents = draft.tree.tokens.tolist(), draft.tree.parents.tolist()
        wanted = target.tolist()
        path = [0]
        # A child comes after its parent, so one walk in node order meets the whole path.
        for node in range(1, len(tokens)):
            if parents[node] == path[-1] and tokens[node] == wanted[path[-1]]:
                path.append(node)
        return Verdict(tuple(path), wanted[path[-1]])

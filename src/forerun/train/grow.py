"""Start a deeper model where a trained shallower one stands.

Knows the decoder's names. Each added layer computes nothing at first (its writes to the residual
stream are zero), so the first step's loss is the smaller model's last one and no training is lost.
"""

from __future__ import annotations

import torch

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError


@torch.no_grad()
def start_from(model: Decoder, trained: Decoder) -> None:
    """Give `model` the function of `trained`; its further layers are silent copies of their likes.

    Layer i of L comes from layer ⌊i·l/L⌋ of l; all but the first copy of a layer have their two
    output projections zeroed (block expansion, Wu et al. 2024, arXiv:2401.02415).

    Raises:
        OptionError: `trained` differs in anything but depth, or is the deeper one.
    """
    depth, deeper = trained.spec.num_layers, model.spec.num_layers
    if depth > deeper or _width(model) != _width(trained):
        raise OptionError(
            f"a model can start from a shallower one of its own width: asked for {_width(model)}"
            f" with {deeper} layers, the trained one has {_width(trained)} with {depth} layers"
        )
    weights, state = trained.state_dict(), model.state_dict()
    for name, value in state.items():
        source, is_copy = _source(name, depth, deeper)
        value.copy_(weights[source])
        if is_copy and name.endswith(("o_proj.weight", "down_proj.weight")):
            value.zero_()


def _source(name: str, depth: int, deeper: int) -> tuple[str, bool]:
    """The trained tensor a tensor starts from, and whether its layer is a further copy."""
    prefix, layers, rest = name.partition(".layers.")
    if not layers:
        return name, False
    at, _, tensor = rest.partition(".")
    index = int(at)
    like = index * depth // deeper
    is_copy = index > 0 and (index - 1) * depth // deeper == like
    return f"{prefix}.layers.{like}.{tensor}", is_copy


def _width(model: Decoder) -> dict[str, int]:
    spec = model.spec
    return {
        "hidden": spec.hidden,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "ffn": spec.ffn,
        "vocab": spec.vocab,
    }

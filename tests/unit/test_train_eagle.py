"""Training an EAGLE-3 head: the unrolled draft is the one that is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from forerun.backends.torch.decoder import Decoder  # noqa: E402  (needs the extra)
from forerun.backends.torch.eagle import EagleDrafter, unroll_mask  # noqa: E402
from forerun.train.anchors import AnchoredText  # noqa: E402
from forerun.train.drafter_export import load_drafter, write_drafter  # noqa: E402
from forerun.train.drafting import Drafting, Examination  # noqa: E402
from forerun.train.eagle import eagle_logits, eagle_spec  # noqa: E402
from forerun.train.lm import Budget, Recipe, Run, code_spec, initialise  # noqa: E402
from forerun.train.losses import DraftLoss  # noqa: E402
from forerun.train.reading import read  # noqa: E402
from forerun.train.text import Text  # noqa: E402

VOCAB = 48


def stirred(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with every parameter moved, so that no projection is zero as it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(name="target")
def _target() -> Decoder:
    model = Decoder(code_spec(hidden=64, layers=6, heads=2, kv_heads=1, ffn=96, vocab=VOCAB))
    initialise(model, 0)
    return stirred(model, 0).requires_grad_(requires_grad=False)


def tiny_eagle(target: Decoder, seed: int = 3) -> EagleDrafter:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = EagleDrafter(eagle_spec(target.spec))
    return stirred(model, seed)


def unrolled(
    model: EagleDrafter, target: Decoder, window: torch.Tensor, features: torch.Tensor, num: int
) -> list[torch.Tensor]:
    """Logits `[T-1 V]` of every row after each step, by the module's own layer and mask."""
    length = features.shape[1] - 1
    state, past, said = model.fuse(features[:, :length]), None, []
    for step in range(num):
        at = (torch.arange(1, length + 1) + step).clamp(max=len(window) - 1)
        embedded = target.embed(window[at])[None]
        mask = unroll_mask(length, step)[None, None]
        state, past = model.layer(embedded, state, torch.arange(length) + step, mask, past)
        said.append(model.logits(state)[0])
    return said


@torch.no_grad()
def test_drafts_from_anchors_are_those_of_the_module_unrolled(target: Decoder) -> None:
    # given
    model, windows = tiny_eagle(target), torch.randint(2, VOCAB, (2, 21))
    anchors = torch.tensor([[1, 7, 8], [2, 15, 19]])
    features = read(target, windows[:, :-1], model.spec.tap_layers).features
    # when
    ours = eagle_logits(model, target, windows, anchors, features, torch.arange(4))
    # then: the row of an anchor is the one before it
    for row in range(2):
        theirs = unrolled(model, target, windows[row], features[row : row + 1], 4)
        for at, anchor in enumerate(anchors[row].tolist()):
            for step in range(4):
                if anchor + step < 21:
                    wanted = theirs[step][anchor - 1]
                    torch.testing.assert_close(ours[row, at, step], wanted, rtol=1e-4, atol=1e-4)
    # Control: the anchor's own row is another.
    assert (
        ours[0, 1, 0] - unrolled(model, target, windows[0], features[:1], 1)[0][7]
    ).abs().max() > 1e-2


@torch.no_grad()
def test_nothing_after_the_anchor_but_the_drafted_tokens_is_seen(target: Decoder) -> None:
    model, window = tiny_eagle(target), torch.randint(2, VOCAB, (1, 21))
    anchors, other = torch.tensor([[6]]), window.clone()
    other[0, 9:] = (other[0, 9:] + 1) % VOCAB

    def drafted(tokens: torch.Tensor) -> torch.Tensor:
        features = read(target, tokens[:, :-1], model.spec.tap_layers).features
        return eagle_logits(model, target, tokens, anchors, features, torch.arange(4))[0, 0]

    one, two = drafted(window), drafted(other)
    torch.testing.assert_close(one[:3], two[:3])  # tokens 6, 7 and 8 are fed so far
    assert (one[3] - two[3]).abs().max() > 1e-2


def test_eight_texts_are_learned_and_written(target: Decoder, tmp_path: Path) -> None:
    # given
    random = np.random.default_rng(5)
    rows = np.stack([np.tile(random.integers(2, VOCAB, 7), 6) for _ in range(8)]).astype(np.uint16)
    spans = np.tile(np.array([14, 42]), (8, 1))
    text = Text(rows, spans, np.zeros(8), np.zeros(8, np.int64))
    model = tiny_eagle(target)
    before = Examination(text, 3).expected(model, target)
    # when
    recipe = Recipe(rows=8, warmup_steps=10, matrix_lr=1e-2, vector_lr=1e-2)
    run = Run(model, recipe, tmp_path / "run")
    # The texts are not the target's own: the text is all there is to learn here.
    drafting = Drafting(target, DraftLoss(hard_share=1.0))
    run.train(AnchoredText(text, 8, 10, 3, 0).at, drafting, Budget(steps=120))
    after = Examination(text, 3).expected(model, target)
    write_drafter(model, tmp_path)
    # then
    assert before.tokens_per_round < 1.5
    assert min(after.by_position) > 0.98
    read_back = load_drafter(tmp_path, target.spec)
    assert isinstance(read_back, EagleDrafter)
    assert read_back.spec.tap_layers == model.spec.tap_layers
    for name, value in model.state_dict().items():
        assert torch.equal(read_back.state_dict()[name], value.bfloat16().float())

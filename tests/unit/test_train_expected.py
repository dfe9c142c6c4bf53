"""What `forerun train expect` counts without an engine is what the engine's rounds come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from counting_target import FIRST, NUM_LETTERS, counting_target
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from forerun import Engine, SamplingParams, Speculation  # noqa: E402  (needs the extra)
from forerun.backends.torch.decoder import Decoder  # noqa: E402
from forerun.models.resolve import resolve_model  # noqa: E402
from forerun.train.arguments import (  # noqa: E402
    BlockArguments,
    DraftArguments,
    Layout,
    SourceArguments,
    StepArguments,
)
from forerun.train.arguments import Engine as StepEngine  # noqa: E402
from forerun.train.drafter_export import load_drafter  # noqa: E402
from forerun.train.drafters import load_target, train_block, train_eagle  # noqa: E402
from forerun.train.drafting import Drafter, Examination  # noqa: E402
from forerun.train.expected import expected  # noqa: E402
from forerun.train.lesson import Job  # noqa: E402
from forerun.train.text import (  # noqa: E402
    Regeneration,
    Text,
    joined,
    listed_prompts,
    regenerate,
)

TINY_SLOTS = {"dspark": 4, "dflash": 5, "eagle3": 4}  # four drafted tokens each
SHIPPED_SLOTS = {"dspark": 8, "eagle3": 5}
CODE = ("def read_lines(path):\n    ", "class Counter:\n    def __init__(self")
STEP = StepArguments(rows=4, row_len=40, learning_rate=1e-2, engine=StepEngine.EAGER, threads=1)


@dataclass
class Rounds:
    """Sees each round of a single row: tokens known as it began, drafted tokens that it kept; and
    all tokens that were ever drafted."""

    seen: list[tuple[int, int]] = field(default_factory=list)
    drafted: set[int] = field(default_factory=set)

    def saw(self, rows: Any, drafts: Any, said: Any, starts: Any, verdicts: Any) -> None:
        self.drafted |= set(drafts[0].tree.tokens[1:].tolist())
        self.seen.append((len(rows[0].tokens), len(verdicts[0].path) - 1))

    def settled(self, stats: Any) -> None:
        """What a round cost is of no account here."""


@dataclass(frozen=True)
class Written:
    """A text of one row, and the rounds that an engine wrote it in."""

    text: Text
    rounds: tuple[tuple[int, int], ...]

    @property
    def kept(self) -> dict[int, int]:
        """Drafted tokens kept by each round but the one that read the prompt, by its anchor: the
        index of the last token known, in what was generated."""
        first = int(self.text.spans[0, 0])
        return {known - 1 - first: kept for known, kept in self.rounds[1:]}


def written(
    engine: Engine, witness: Rounds, prompt: Sequence[int], temperature: float, num_new: int
) -> list[Written]:
    """One row if greedy, else two with different seeds."""
    made = []
    for seed in (1,) if temperature == 0 else (2, 3):
        witness.seen.clear()
        wish = SamplingParams(
            temperature=temperature, seed=seed, max_tokens=num_new, ignore_eos=True
        )
        answer = engine.generate([list(prompt)], [wish])[0].token_ids
        row = np.array([[*prompt, *answer]], np.uint16)
        span = np.array([[len(prompt), row.shape[1]]])
        text = Text(row, span, np.array([temperature]), np.array([seed]))
        made.append(Written(text, tuple(witness.seen)))
    return made


Runs: TypeAlias = NDArray[np.int64]


def runs_of(model: Drafter, target: Decoder, one: Written, num_slots: int) -> Runs:
    """Without an engine: how much would be kept of a draft begun anywhere in a text."""
    return Examination(one.text, num_slots).runs(model, target, 0)


def kept(runs: Runs, one: Written, *, late: int = 0) -> dict[int, int]:
    """As `Written.kept`, of drafts that begin `late` tokens behind the anchors of its rounds."""
    held = np.minimum(runs, len(runs) - 1 - np.arange(len(runs)))
    return {at: int(held[min(at + late, len(held) - 1)]) for at in one.kept}


def differing(runs: Sequence[Runs], made: Sequence[Written], *, late: int = 0) -> float:
    """Of all rounds that drafted, the share that kept more or less than was counted."""
    pairs = [(kept(found, one, late=late), one.kept) for found, one in zip(runs, made, strict=True)]
    num_differing = sum(there[at] != num for there, here in pairs for at, num in here.items())
    return num_differing / sum(len(here) for _, here in pairs)


@pytest.fixture(name="one_thread", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(name="counting", scope="module")
def _counting(tiny_checkpoint_dir: Callable[..., Path]) -> Path:
    return counting_target(tiny_checkpoint_dir)


@pytest.fixture(name="text", scope="module")
def _text(counting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = Regeneration(0.0, 40, 8, (0.0, 1.0), seed=3, batch_rows=128, threads=1)
    letters = np.random.default_rng(0).integers(FIRST, FIRST + NUM_LETTERS, (64, 8)).tolist()
    directory = tmp_path_factory.mktemp("text")
    joined(list(regenerate(counting, listed_prompts(letters, plan), plan))).save(
        directory / "a.npz"
    )
    return directory


def trained(kind: str, counting: Path, text: Path, out: Path, **settings: Any) -> Path:
    """A drafter of 50 steps: it has learned to count, not how sure its target is."""
    source = SourceArguments(model=str(counting), text=[text])
    draft = DraftArguments(anchors=10, max_steps=50, dense_steps=0, patience=0, examine_every=60.0)
    job = Job(kind, out, 60.0, source, replace(draft, **settings), STEP)
    if kind == "eagle3":
        train_eagle(job, num_steps=TINY_SLOTS[kind])
        return out
    shape = BlockArguments(layers=1, block=TINY_SLOTS[kind], taps=2, mask_id=1)
    is_shifted = kind == "dspark"
    train_block(job, shape, is_shifted=is_shifted, markov_rank=16 * is_shifted)
    return out


def texts_of(engine: Engine, witness: Rounds) -> dict[float, list[Written]]:
    """What an engine writes behind two prompts, greedily and at temperature 1."""
    prompts = [[FIRST + at, FIRST + at + 1, FIRST + at + 2] for at in (0, 9)]
    return {
        warmth: [w for p in prompts for w in written(engine, witness, p, warmth, 60)]
        for warmth in (0.0, 1.0)
    }


def written_with(drafter: str, counting: Path, witness: Rounds) -> dict[float, list[Written]]:
    """The same of an engine of its own, in PyTorch."""
    speculate = Speculation(drafter, "chain:4")
    with Engine(counting, speculate=speculate, backend="torch", witness=witness) as engine:
        return texts_of(engine, witness)


def require_counted(
    made: dict[float, list[Written]], model: Drafter, target: Decoder, num_slots: int, least: float
) -> None:
    """Every round kept what is counted without an engine, and a round yields at least so much."""
    for one in made[0.0] + made[1.0]:
        assert kept(runs_of(model, target, one, num_slots), one) == one.kept
        found = Examination(one.text, num_slots).expected(model, target)
        assert (found.num_tokens, found.num_rounds) == (60, len(one.rounds))
        assert found.tokens_per_round > least


class TestInFloat32:
    """Both read the same float32 weights in the same library: nothing is left to rounding."""

    @pytest.mark.parametrize(
        ("kind", "layout"),
        [
            ("dspark", None),
            ("dflash", None),
            ("eagle3", Layout.EAGLE3),
            ("eagle3", Layout.SPECULATORS),
        ],
    )
    def test_so_it_is_with_a_drafter_that_knows_some_of_the_tokens(
        self, kind: str, layout: Layout | None, counting: Path, text: Path, tmp_path: Path
    ) -> None:
        # given: the letters that the target counts through, and others that noise has it say
        drafter = trained(kind, counting, text, tmp_path, draft_vocab=200, export=layout)
        num_slots, witness = TINY_SLOTS[kind], Rounds()
        # when
        made = written_with(f"{kind}:{drafter}", counting, witness)
        # then
        target = load_target(counting)
        model = load_drafter(drafter, target.spec)
        require_counted(made, model, target, num_slots, least=1.1)
        # and no other token is drafted, though the text has others
        known = set(model.target_ids().tolist())
        assert len(known) == 200
        assert witness.drafted <= known
        assert {t for one in made[1.0] for t in one.text.rows[0].tolist()} - known
        # Control: as many tokens, of which each is another
        model.d2t += 1
        assert kept(runs_of(model, target, made[0.0][0], num_slots), made[0.0][0]) != (
            made[0.0][0].kept
        )

    @pytest.mark.parametrize("kind", TINY_SLOTS)
    def test_every_round_keeps_what_was_counted_without_it(
        self, kind: str, counting: Path, text: Path, tmp_path: Path
    ) -> None:
        # given
        drafter = trained(kind, counting, text, tmp_path)
        num_slots = TINY_SLOTS[kind]
        # when: an engine writes with it
        made = written_with(f"{kind}:{drafter}", counting, Rounds())
        # then
        target = load_target(counting)
        model = load_drafter(drafter, target.spec)
        require_counted(made, model, target, num_slots, least=1.5)
        # Controls: drafts of the place behind, noise of another seed
        for one in made[1.0]:
            assert kept(runs_of(model, target, one, num_slots), one, late=1) != one.kept
            other = replace(one, text=replace(one.text, seeds=one.text.seeds + 1))
            assert kept(runs_of(model, target, other, num_slots), one) != one.kept


class TestOfTheShippedDrafters:
    """Natively weights are bfloat16 and sums have another order: a near tie may fall otherwise."""

    @pytest.mark.parametrize("kind", SHIPPED_SLOTS)
    def test_the_engine_yields_what_was_counted_within_two_percent(self, kind: str) -> None:
        # given: two greedy texts of code and four sampled ones
        directory, num_slots, witness = resolve_model("forerun-code"), SHIPPED_SLOTS[kind], Rounds()
        speculate = Speculation(kind, f"chain:{num_slots}")
        with Engine(directory, speculate=speculate, threads=1, witness=witness) as engine:
            prompts = [engine.tokenizer.encode(prompt) for prompt in CODE]
            made = {
                warmth: [w for p in prompts for w in written(engine, witness, p, warmth, 96)]
                for warmth in (0.0, 1.0)
            }
        target = load_target(directory)
        model = load_drafter(directory / "drafters" / kind, target.spec)
        every = made[0.0] + made[1.0]
        runs = [runs_of(model, target, one, num_slots) for one in every]
        for chosen, least in ((slice(2), 3.0), (slice(2, 6), 1.5)):
            # when
            found = expected(runs[chosen], num_slots)
            # then
            num_rounds = sum(len(one.rounds) for one in every[chosen])
            most = max(1, 0.02 * found.num_rounds)  # of fewer than fifty rounds: one
            assert abs(num_rounds - found.num_rounds) <= most
            assert found.num_tokens / num_rounds > least
        # and from one beginning a round keeps as much
        assert differing(runs, every) < 0.02
        # Controls: drafts of the place behind, a drafter that is not quite this one
        assert differing(runs, every, late=1) > 0.3
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.3 * weight.std() * torch.randn(weight.shape))
        others = [runs_of(model, target, one, num_slots) for one in every[:2]]
        assert differing(others, every[:2]) > 0.1

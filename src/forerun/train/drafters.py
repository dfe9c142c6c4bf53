"""The acts of making a drafter that reads its target's features: text, training, examination.

Knows the other modules of this package and the files that go between them. Progress goes to stderr.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forerun.backends.torch.block import BlockDrafter, initialise
from forerun.backends.torch.decoder import Decoder
from forerun.backends.torch.eagle import EagleDrafter
from forerun.errors import OptionError
from forerun.models.drafter_configs import config_of
from forerun.models.drafter_layouts import DEEPSPEC
from forerun.models.drafter_notes import DrafterNotes, write_notes
from forerun.models.drafter_spec import MarkovKind
from forerun.models.resolve import resolve_model
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.models.weights import open_checkpoint
from forerun.tools.machine import machine_name
from forerun.train import held_out
from forerun.train.anchors import AnchoredText
from forerun.train.batches import Batches
from forerun.train.blocks import block_spec
from forerun.train.curve import draw_curve
from forerun.train.draft_vocab import draft_vocab_of, frequent_tokens
from forerun.train.drafter_card import write_drafter_card
from forerun.train.drafter_export import load_drafter, write_drafter
from forerun.train.drafting import Drafter, Drafting, by_temperature, examine
from forerun.train.eagle import eagle_spec
from forerun.train.examining import Examiner
from forerun.train.expected import Expected
from forerun.train.inherit import start_at_drafter, start_at_target, start_head
from forerun.train.lesson import Job, Lesson, lesson_of
from forerun.train.lm import Budget, Recipe, Run, Watch, write_facts
from forerun.train.losses import DraftLoss
from forerun.train.next_tokens import examine_small, is_language_model, load_small
from forerun.train.outcome import Ending, Outcome, recorded_yields
from forerun.train.progress import progress_bar
from forerun.train.prompts import corpus_stream, mask_id_of, refuse_foreign_corpus
from forerun.train.text import Text, read_text

if TYPE_CHECKING:
    from forerun.train.arguments import (
        BlockArguments,
        DraftArguments,
        SourceArguments,
        SparkArguments,
        StepArguments,
    )

EAGLE_GAMMA = 4.4814  # exp(-1 / gamma) = 0.8, the weight of a step after its like
EXAMINED_ROWS = 6  # of each temperature while training


def train_block(
    job: Job,
    shape: BlockArguments | SparkArguments,
    *,
    is_shifted: bool,
    markov_rank: int,
    markov_kind: MarkovKind = MarkovKind.VANILLA,
) -> Outcome:
    """Train, or go on training, a block drafter; write it to the job's `out`.

    Raises:
        OptionError: sizes or sources that do not fit together, or files that are not there.
        ModelError: a target that cannot be used, a layout that cannot say such a drafter.
    """
    directory = resolve_model(job.source.model)
    target = load_target(directory, job.step.device)
    spec = block_spec(
        target.spec,
        num_layers=shape.layers,
        block_len=shape.block,
        num_taps=shape.taps,
        mask_id=mask_id_of(directory, target.spec, shape.mask_id),
        is_shifted=is_shifted,
        markov_rank=markov_rank,
        markov_kind=markov_kind,
        draft_vocab=draft_vocab_of(job.draft.draft_vocab, target.spec.vocab),
    )
    return _train(
        job, BlockDrafter(spec), Drafting(target, _loss(job.draft)), _changed(shape), shape.block
    )


def train_eagle(job: Job, *, num_steps: int) -> Outcome:
    """Train, or go on training, an EAGLE-3 head; write it to `out`. Raises as `train_block`."""
    target = load_target(resolve_model(job.source.model), job.step.device)
    loss = replace(_loss(job.draft), gamma=EAGLE_GAMMA)
    num_drafted = draft_vocab_of(job.draft.draft_vocab, target.spec.vocab)
    model = EagleDrafter(eagle_spec(target.spec, num_drafted))
    return _train(job, model, Drafting(target, loss), f" --steps {num_steps}", num_steps)


def expect_drafter(
    drafter: Path, source: SourceArguments, num_rows: int, num_steps: int, threads: int
) -> dict[str, Expected]:
    """What a drafter yields on held-out text, by temperature: on what its training held out, where
    no text, corpus or data is given.

    Raises:
        OptionError: neither of these.
        ModelError: a target or drafter that cannot be used.
    """
    if threads:
        torch.set_num_threads(threads)
    directory = resolve_model(source.model)
    if is_language_model(drafter):
        small = load_small(drafter, read_spec(directory).vocab)
        text = _examined_text(drafter, source, directory, num_rows)
        return examine_small(by_temperature(text, num_rows, num_steps), small)
    target = load_target(directory)
    model = load_drafter(drafter, target.spec)
    text = _examined_text(drafter, source, directory, num_rows)
    num_slots = model.spec.block_len if isinstance(model, BlockDrafter) else num_steps
    return examine(by_temperature(text, num_rows, num_slots), model, target)


def _examined_text(drafter: Path, source: SourceArguments, model: Path, num_rows: int) -> Text:
    if source.text:
        return read_text(source.text)
    if source.corpus or source.data:
        plan = replace(held_out.HELD_OUT, batch_rows=3 * num_rows)
        return held_out.written_held_out(source, model, plan)
    kept = drafter / "run" / held_out.FILE
    if not kept.exists():
        raise OptionError(
            f"there is no text to examine {drafter} on, and {kept}, what its training held out, is"
            " not there: give --text, --corpus or --data"
        )
    return read_text([kept])


def record_yields(drafter: Path, figures: Mapping[str, Expected]) -> None:
    """Note in a drafter's config.json what it yields, for `--drafter auto` to reckon with.

    Raises:
        ModelError: a directory that has no config.json, as that of a training that is not over.
    """
    write_notes(drafter, DrafterNotes(recorded_yields(figures)))


def write_card(drafter: Path, source: SourceArguments, figures: dict[str, Any]) -> None:
    """Write MODEL_CARD.md into a drafter's directory, with the facts of its training if they are
    there.

    Raises:
        ModelError: a target or drafter that cannot be used.
    """
    target = read_spec(resolve_model(source.model))
    is_small = is_language_model(drafter)
    spec = read_spec(drafter) if is_small else load_drafter(drafter, target).spec
    facts = drafter / "run" / "training.json"
    training = json.loads(facts.read_text()) if facts.exists() else None
    write_drafter_card(drafter / "MODEL_CARD.md", spec, training, figures, machine_name())


def load_target(directory: Path, device: str = "cpu") -> Decoder:
    """The float32 decoder of a model directory, not to be trained."""
    checkpoint = open_checkpoint(directory)
    decoder = Decoder(checkpoint.spec)
    weights = {
        name: torch.from_numpy(checkpoint.tensor(name).float32()) for name in decoder.state_dict()
    }
    decoder.load_state_dict(weights)
    return decoder.to(device).requires_grad_(requires_grad=False)


def _train(job: Job, model: Drafter, drafting: Drafting, command: str, num_slots: int) -> Outcome:
    step, run_directory = job.step, job.out / "run"
    if job.draft.export is not None:
        config_of(model.spec, job.draft.export.value)  # refused now, not when the time is up
    refuse_foreign_corpus(job.source.corpus, resolve_model(job.source.model))
    if step.threads:
        torch.set_num_threads(step.threads)
    target = drafting.target
    initialise(model, step.seed)
    start_at_target(model, target)
    run = Run(model, _recipe(step), run_directory, device=step.device)
    if job.draft.start_from is not None and run.position.step == 0:
        start_at_drafter(model, load_drafter(job.draft.start_from, target.spec))
    lesson = lesson_of(job, run_directory)
    if run.position.step == 0 and job.draft.start_from is None:
        _choose_tokens(job, model, target, lesson.text)
    examinations = by_temperature(lesson.held_out, EXAMINED_ROWS, num_slots)
    examiner = Examiner(
        lambda: examine(examinations, model, target),
        run_directory,
        job.out / "acceptance.png",
        job.draft.patience,
        run.position.step,
    )
    anchored = _anchored(job, lesson.text, model, num_slots)
    objective: Callable[..., Tensor] = drafting
    if step.engine == "compiled":
        objective = _compiled(drafting, lesson.text.rows.shape[1])
    most = job.draft.max_steps
    budget = Budget(steps=most) if most else Budget(minutes=lesson.minutes)
    _run(job, run, anchored, objective, budget, examiner)
    return _write(job, run, command, examiner, lesson, budget)


def _choose_tokens(job: Job, model: Drafter, target: Decoder, text: Text) -> None:
    """Let a head that knows some tokens only know what the text has most often. A training that
    goes on has them in its checkpoint, one that starts from a drafter has that one's."""
    if not model.spec.has_token_map:
        return
    tokenizer = load_tokenizer(resolve_model(job.source.model), target.spec)
    sizes = (model.spec.head_vocab, target.spec.vocab)
    start_head(model, target, frequent_tokens(text, *sizes, tokenizer))


def _anchored(job: Job, text: Text, model: Drafter, num_slots: int) -> AnchoredText:
    first = isinstance(model, BlockDrafter) and not model.spec.is_shifted
    return AnchoredText(
        text,
        job.step.rows,
        job.draft.anchors,
        num_slots,
        job.step.seed,
        _corpus_windows(job.source, job.step),
        dense_steps=0 if job.draft.start_from else job.draft.dense_steps,
        first_slots=1 + first,
    )


def _run(
    job: Job,
    run: Run[Any],
    anchored: AnchoredText,
    objective: Callable[..., Tensor],
    budget: Budget,
    examiner: Examiner,
) -> None:
    """Train until the budget is used up, it no longer pays or somebody stops it; look once more."""

    def look() -> bool:
        return examiner.look(run.position.step, run.model)

    def told(record: dict[str, Any]) -> None:
        report(record | {"tokens_per_round": examiner.latest})

    watch = Watch(look, 60 * job.draft.examine_every)
    with progress_bar(budget.minutes or job.minutes) as report:
        if not examiner.is_over:
            run.train(anchored.at, objective, budget, report=told, watch=watch)
    look()


def _write(
    job: Job, run: Run[Any], changed: str, examiner: Examiner, lesson: Lesson, budget: Budget
) -> Outcome:
    draw_curve(run.directory / "log.jsonl", job.out / "loss.png", label="loss, nats a token")
    command = f"forerun train {job.kind} --out {job.out} --minutes {job.minutes:g}"
    command += _changed(job.source) + _changed(job.draft) + _changed(job.step) + changed
    write_facts(run, command)
    best = examiner.best()
    assert best is not None  # it was looked at last
    run.model.load_state_dict(best.weights)  # the run itself goes on from its last ones
    layout = None if job.draft.export is None else job.draft.export.value
    source = resolve_model(job.source.model)
    write_drafter(
        run.model,
        job.out,
        layout=layout,
        tokenizer_from=source,
        verifier=_name_elsewhere(job.source.model, source),
        copied=open_checkpoint(source) if layout == DEEPSPEC else None,
    )
    if layout is None:  # files for other engines have no keys but their own
        text = lesson.text
        notes = DrafterNotes(recorded_yields(best.figures), text.rows.shape[1] - 1, text.thinking)
        write_notes(job.out, notes)
    return Outcome(
        job.kind,
        job.out,
        job.source.model,
        _ending(run, examiner, budget),
        best.step,
        run.position.step,
        best.figures,
    )


def _ending(run: Run[Any], examiner: Examiner, budget: Budget) -> Ending:
    if budget.progress(run.position.step, run.position.elapsed_s) >= 1.0:
        return Ending.BUDGET
    return Ending.PATIENCE if examiner.is_over else Ending.STOPPED


def _name_elsewhere(model: str, directory: Path) -> str:
    """What other engines can open as this model: a repository's name, else its directory."""
    is_repository = "/" in model and not Path(model).expanduser().is_dir()
    return model if is_repository else str(directory.resolve())


def _loss(draft: DraftArguments) -> DraftLoss:
    return DraftLoss(draft.divergence.value, draft.weights.value, hard_share=draft.hard_share)


def _recipe(step: StepArguments) -> Recipe:
    return Recipe(
        rows=step.rows,
        row_len=step.row_len,
        matrix_lr=step.learning_rate,
        vector_lr=step.learning_rate,
        decay_share=step.decay_share,
        seed=step.seed,
    )


def _corpus_windows(source: SourceArguments, step: StepArguments) -> Batches | None:
    if source.corpus is None:
        return None
    stream = corpus_stream(source.corpus, "train")
    return Batches(stream, step.rows, step.row_len, step.seed, long_every=4)


def _compiled(drafting: Drafting, row_len: int) -> Callable[..., Tensor]:
    fast = torch.compile(drafting, dynamic=False)

    def chosen(model: Drafter, windows: Tensor, *parts: Tensor) -> Tensor:
        # Rare lengths are not worth the minute that their own compilation takes.
        step = fast if windows.shape[1] == row_len else drafting
        loss: Tensor = step(model, windows, *parts)
        return loss

    return chosen


def as_data(one: Expected) -> dict[str, Any]:
    """The figures of one temperature, as `forerun train expect` prints them."""
    return {
        "tokens_per_round": one.tokens_per_round,
        "from_anywhere": one.from_anywhere,
        "by_position": list(one.by_position),
        "by_length": list(one.by_length),
        "num_tokens": one.num_tokens,
        "num_rounds": one.num_rounds,
    }


def _changed(arguments: Any) -> str:
    """The options that were not left at their defaults, as on the command line."""
    said = ""
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if value != field.default:
            each = value if isinstance(value, list) else [value]
            said += "".join(f" --{field.name.replace('_', '-')} {one}" for one in each)
    return said

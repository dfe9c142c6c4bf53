"""The three acts of making the embedded family: collect, train, evaluate.

Knows the other modules of this package and the files that go between them. Progress goes to stderr.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor

from forerun.backends.torch.decoder import Decoder
from forerun.errors import OptionError
from forerun.models.spec import ModelSpec, read_exit_layer, read_spec
from forerun.train import grow
from forerun.train.batches import Batches
from forerun.train.card import Training, write_card
from forerun.train.corpus import (
    HELD_OUT,
    Document,
    Limits,
    collect,
    default_roots,
    packages_under,
    read_documents,
    reading_order,
    write_corpus,
)
from forerun.train.curve import draw_curve
from forerun.train.distill import Distillation, MixedText, SamplingPlan, sample_target, start_like
from forerun.train.evaluate import (
    Examination,
    bits_by_position,
    bits_per_byte,
    chosen_documents,
    completions,
    compressed_bits_per_byte,
    drafter_agreement,
)
from forerun.train.exits import EarlyExit, check_exit, exit_figures
from forerun.train.export import export_checkpoint, load_decoder
from forerun.train.lm import (
    Budget,
    Objective,
    Recipe,
    Run,
    code_spec,
    initialise,
    next_token_loss,
    write_facts,
)
from forerun.train.progress import progress_bar
from forerun.train.tokenizer import encode_documents, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from forerun.train.arguments import LessonArguments, ShapeArguments, StepArguments

TARGET_SHAPE = {"hidden": 256, "layers": 12, "heads": 4, "kv_heads": 2, "ffn": 768}
DRAFTER_SHAPE = {"hidden": 128, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 384}
MAX_POSITION = 4096
TOKENIZER_SAMPLE = 3  # every third document is enough to learn 4096 entries
SAMPLING_SHARE = 0.25
DRAFTER_VECTOR_LR = 1.5  # most of a drafter is its embedding, which sees each token rarely
STARTED_FROM = "started_from.txt"
CURVE_LABEL = {
    "target": "training loss, nats a token",
    "drafter": "0.9 KL + 0.1 cross-entropy, nats a token",
    "exits": "loss of both exits, nats a token",
}


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What to learn from, and what to minimise on it."""

    batches: Batches
    windows_at: Callable[[int], NDArray[np.int64]]
    objective: Objective
    longest_compiled: int


def build_corpus(
    out: Path, *, roots: list[Path] | None, held_out: list[str] | None, vocab: int
) -> None:
    """Write the corpus, its tokenizer and its token ids to `out`."""
    console = Console(stderr=True)
    packages = [p for root in roots or default_roots() for p in packages_under(root)]
    console.print(f"{len(packages)} permissively licensed packages found; reading")
    documents, records = collect(packages, held_out or HELD_OUT, Limits())
    sizes = write_corpus(documents, records, out)
    console.print(f"train {sizes.get('train', 0):,} bytes, held out {sizes.get('heldout', 0):,}")
    texts = [d.text for d in reading_order(read_documents(out / "train.jsonl"))]
    held_texts = [d.text for d in read_documents(out / "heldout.jsonl")]
    if not texts:
        raise OptionError("no Python source with a permissive licence found: give other --root")
    tokenizer = train_tokenizer(texts[::TOKENIZER_SAMPLE], vocab)
    save_tokenizer(tokenizer, out / "tokenizer", MAX_POSITION)
    for part, part_texts in (("train", texts), ("heldout", held_texts)):
        ids = encode_documents(tokenizer, part_texts)
        np.save(out / f"{part}.npy", ids)
        console.print(f"{part}: {len(ids):,} tokens")


def train_lm(
    corpus: Path,
    out: Path,
    minutes: float,
    *,
    lesson: LessonArguments,
    shape: ShapeArguments,
    step: StepArguments,
) -> None:
    """Train, or go on training, a target or a drafter of another; export it to `out`.

    Raises:
        OptionError: sizes or a lesson that do not fit together, or files that are not there.
    """
    target = lesson.distill_from
    if step.threads:
        torch.set_num_threads(step.threads)
    run = _open_run(corpus, out, shape, step, is_drafter=target is not None)
    objective = _objective(lesson, run.model.spec.num_layers)
    if run.position.step == 0:
        _start(run.model, shape, target)
    learned = _text_lesson(run, corpus, objective)
    stepping = minutes
    if target is not None:
        stepping *= 1 - SAMPLING_SHARE
        learned = _imitation(run, learned, target, minutes - stepping)
    objective = learned.objective if step.engine == "eager" else _compiled(learned)
    with progress_bar(stepping) as report:
        run.train(learned.windows_at, objective, Budget(minutes=stepping), report=report)
    command = f"forerun train lm --corpus {corpus} --out {out} --minutes {minutes:g}"
    command += options_said(lesson) + options_said(shape) + options_said(step)
    export_checkpoint(run.model, corpus / "tokenizer", out, exit_layer=lesson.exit_layer)
    _write_facts(run, out, _role(lesson), command)
    if shape.start_from is not None:
        (out / "run" / STARTED_FROM).write_text(f"{shape.start_from.resolve()}\n")


def evaluate_family(model_dir: Path, corpus: Path) -> dict[str, Any]:
    """Every held-out figure of a model and, if there are, of its exit and its `lm` drafter."""
    plan, every_document = Examination(), read_documents(corpus / "heldout.jsonl")
    documents = chosen_documents(every_document, plan)
    tokenizer = _tokenizer(model_dir, "forerun train lm")
    stream = _stream(corpus / "heldout.npy")
    target = load_decoder(model_dir)
    measured: dict[str, Any] = {
        "packages": sorted({document.package for document in documents}, key=str.lower),
        "num_documents": len(documents),
        "num_bytes": _num_bytes(documents),
        "window": plan.window,
        "prompt_len": plan.prompt_len,
        "num_new": plan.num_new,
        "compressors": compressed_bits_per_byte(documents),
        "target_bpb": bits_per_byte(target, tokenizer, documents, plan),
        "bits_by_position": bits_by_position(
            target, stream, _num_bytes(every_document) / len(stream), plan
        ),
        "completions": completions(target, tokenizer, every_document, plan),
    }
    exit_layer = read_exit_layer(model_dir)
    if exit_layer is not None:
        measured["exit"] = exit_figures(target, exit_layer, tokenizer, documents, stream, plan)
    drafter_dir = model_dir / "drafters" / "lm"
    if drafter_dir.exists():
        drafter = load_decoder(drafter_dir)
        measured["drafter_bpb"] = bits_per_byte(drafter, tokenizer, documents, plan)
        measured["agreement"] = drafter_agreement(target, drafter, tokenizer, every_document, plan)
    return measured


def write_family_card(model_dir: Path, corpus: Path, measured: dict[str, Any]) -> None:
    """Write MODEL_CARD.md beside the weights from what training and evaluation left behind."""
    trainings = [
        *_trainings("target", model_dir),
        *_trainings("lm drafter", model_dir / "drafters" / "lm"),
    ]
    write_card(
        model_dir / "MODEL_CARD.md", corpus / "manifest.json", trainings, measured, machine()
    )


def _trainings(role: str, directory: Path) -> list[Training]:
    """The training of a directory's model, after that of the model it started from."""
    facts = directory / "run" / "training.json"
    if not facts.exists():
        return []
    before = list[Training]()
    started_from = directory / "run" / STARTED_FROM
    if started_from.exists():
        before = _trainings(f"{role}, before", Path(started_from.read_text().strip()))
    return [*before, Training(role, read_spec(directory), **json.loads(facts.read_text()))]


def machine() -> str:
    """The processor and the library that do the training, in words."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    count = torch.get_num_threads()
    cores = f"{count} core{'s' if count > 1 else ''}"
    return f"{cores} of {name} with PyTorch {torch.__version__}"


def _write_facts(run: Run[Decoder], out: Path, role: str, command: str) -> None:
    draw_curve(run.directory / "log.jsonl", out / "loss.png", label=CURVE_LABEL[role])
    write_facts(run, command)


def _role(lesson: LessonArguments) -> str:
    if lesson.distill_from is not None:
        return "drafter"
    return "exits" if lesson.exit_layer else "target"


def options_said(arguments: Any, *, but: str = "") -> str:
    """The options that were not left at their defaults, as on the command line, `but` one."""
    said = ""
    for field in fields(arguments):
        value = getattr(arguments, field.name)
        if value == field.default or field.name == but:
            continue
        option = f" --{field.name.replace('_', '-')}"
        each = value if isinstance(value, list) else [value]
        said += option if value is True else "".join(f"{option} {one}" for one in each)
    return said


def recipe_of(step: StepArguments, *, is_drafter: bool) -> Recipe:
    """How a language model, or the drafter of one, is trained with these options."""
    return Recipe(
        rows=step.rows,
        row_len=step.row_len,
        matrix_lr=step.learning_rate,
        vector_lr=step.learning_rate * (DRAFTER_VECTOR_LR if is_drafter else 1.0),
        decay_share=step.decay_share,
        seed=step.seed,
    )


def _spec(shape: ShapeArguments, family: dict[str, int], vocab: int) -> ModelSpec:
    sizes = {name: getattr(shape, name) or default for name, default in family.items()}
    if sizes["heads"] % sizes["kv_heads"]:
        raise OptionError(
            f"--heads {sizes['heads']} is not a multiple of --kv-heads {sizes['kv_heads']}"
        )
    return code_spec(**sizes, vocab=vocab)


def _open_run(
    corpus: Path, out: Path, shape: ShapeArguments, step: StepArguments, *, is_drafter: bool
) -> Run[Decoder]:
    recipe = recipe_of(step, is_drafter=is_drafter)
    tokenizer = _tokenizer(corpus / "tokenizer", "forerun train corpus")
    family = DRAFTER_SHAPE if is_drafter else TARGET_SHAPE
    model = Decoder(_spec(shape, family, tokenizer.get_vocab_size()))
    initialise(model, step.seed)
    return Run(model, recipe, out / "run", device=step.device)


def _start(model: Decoder, shape: ShapeArguments, target: Path | None) -> None:
    like = shape.embedding_from or target
    if shape.start_from is not None:
        grow.start_from(model, load_decoder(shape.start_from))
    elif like is not None:
        start_like(model, load_decoder(like))


def _objective(lesson: LessonArguments, num_layers: int) -> Objective:
    if not lesson.exit_layer:
        return next_token_loss
    if lesson.distill_from is not None:
        raise OptionError(
            "--exit-layer trains a model to be its own drafter, --distill-from the drafter of"
            " another: give one of them"
        )
    check_exit(lesson.exit_layer, num_layers)
    return EarlyExit(lesson.exit_layer, lesson.exit_weight, lesson.exit_hard_share)


def _text_lesson(run: Run[Decoder], corpus: Path, objective: Objective) -> _Lesson:
    recipe, stream = run.recipe, _stream(corpus / "train.npy")
    batches = Batches(stream, recipe.rows, recipe.row_len, recipe.seed, recipe.long_every)
    return _Lesson(batches, batches.at, objective, 4 * recipe.row_len)


def _imitation(run: Run[Decoder], text: _Lesson, target_dir: Path, minutes: float) -> _Lesson:
    target = load_decoder(target_dir).to(run.device).requires_grad_(requires_grad=False)
    sampled = _sampled(target, text.batches.stream, run.directory, minutes, run.recipe)
    mixed = MixedText(text.batches, sampled)
    return _Lesson(text.batches, mixed.at, Distillation(target), run.recipe.row_len)


def _sampled(
    target: Decoder, stream: NDArray[np.uint16], directory: Path, minutes: float, recipe: Recipe
) -> NDArray[np.uint16]:
    """The target's own text, made once and kept beside the checkpoint."""
    path = directory / "sampled.npy"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        plan = SamplingPlan(seconds=60 * minutes, row_len=recipe.row_len, seed=recipe.seed)
        with progress_bar(minutes, "sampling from the target") as report:
            np.save(path, sample_target(target, stream, plan, report))
    rows: NDArray[np.uint16] = np.load(path, mmap_mode="r")
    return rows


def _compiled(lesson: _Lesson) -> Objective:
    fast: Objective = torch.compile(lesson.objective, dynamic=False)

    def chosen(model: Decoder, windows: Tensor) -> Tensor:
        # Rare lengths are not worth the minute that their own compilation takes.
        step = fast if windows.shape[1] <= lesson.longest_compiled + 1 else lesson.objective
        return step(model, windows)

    return chosen


def _num_bytes(documents: list[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _tokenizer(directory: Path, maker: str) -> Tokenizer:
    path = directory / "tokenizer.json"
    if not path.exists():
        raise OptionError(f"{path} does not exist: make it with `{maker}`")
    return Tokenizer.from_file(str(path))


def _stream(path: Path) -> NDArray[np.uint16]:
    if not path.exists():
        raise OptionError(f"{path} does not exist: build it with `forerun train corpus`")
    stream: NDArray[np.uint16] = np.load(path, mmap_mode="r")
    return stream

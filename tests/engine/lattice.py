"""Everything that can be composed, over tiny models: names, files they need, and requests.

Every axis is a list; a new drafter, shape or rule joins the product by one line here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.feature_drafters import write_feature_drafters
from forerun import Engine, SamplingParams, Speculation
from forerun.composition import RULES, compose
from forerun.errors import IncompatibleSpeculation

# What stands in braces is a path of `Places`.
DRAFTERS = (
    "none",
    "lookup",
    "lookup:{corpus}",
    "prediction:{prediction}",
    "lm",
    "lm:{target}",  # the target itself: it is always right
    "lm:{other}",  # another tokenizer
    "dflash:{dflash}",
    "dspark:{dspark}",
    "dspark:{rnn}",
    "eagle3:{eagle3}",
    "exit:1",
    "router(exit:1,lookup)",
    "router(dspark:{dspark},eagle3:{eagle3},lm)",
    "router(lookup,lm)",
    "router(lm:{other},prediction:{prediction},none)",
    "nested(none,chain:2,match)",
    "nested(lookup,tree:4,match)",
    "nested(lm,tree:2x1,match)",
    "nested(lm,chain:2,rejection)",
    "nested(nested(lm,chain:2,match),chain:3,match)",
    "router(nested(lm,chain:2,match),lookup:{corpus})",
)
SHAPES = (
    "auto",
    "chain:1",
    "chain:4",
    "chain:auto",
    "tree:1",
    "tree:5",
    "tree:16",
    "tree:auto",
    "tree:3x2x1",
    "tree:{tree}",
    "tree:5:top",
    "tree:3x2x1:top",
    "tree:5:likeliest",
    "tree:3x2x1:likeliest",
)
SCHEDULES = ("parallel", "ahead", "ahead:1", "ahead:24")  # that overlap
TREE_PARENTS = [0, 0, 1, 2, 1, 3, 0, 6]
OTHER_MERGES = [("a", "b"), ("e", "n"), ("ab", "c")]
SCALE = 0.35  # of the weights: laws peaked enough that drafts are often right


@dataclass(frozen=True)
class Places:
    """Where the models and files of the product lie."""

    target: Path
    other: Path
    corpus: Path
    prediction: Path
    tree: Path
    dflash: Path
    dspark: Path
    eagle3: Path
    gated: Path
    rnn: Path

    def speculation(self, words: tuple[str, ...]) -> Speculation:
        return Speculation(*(word.format(**asdict(self)) for word in words))


def allowed(rules=RULES) -> list[tuple[str, str, str]]:
    """Every (drafter, shape, rule) that is not refused."""
    return [
        (drafter, shape, rule)
        for drafter in DRAFTERS
        for shape in SHAPES
        for rule in rules
        if _may_be(drafter, shape, rule)
    ]


def overlapped(rules=RULES) -> list[tuple[str, str, str, str]]:
    """Every (drafter, shape, rule) that can draft while its target verifies, with the schedules in
    turn: so each drafter meets each of them."""
    timely = [words for words in allowed(rules) if _may_be(*words, schedule="ahead")]
    return [(*words, SCHEDULES[at % len(SCHEDULES)]) for at, words in enumerate(timely)]


def _may_be(*words: str, schedule: str = "auto") -> bool:
    named = [word.replace("{tree}", "T.json").replace("{", "").replace("}", "") for word in words]
    try:
        compose(*named, schedule)
    except IncompatibleSpeculation:
        return False
    return True


# --- models and files -----------------------------------------------------------------------------


def write_places(root: Path, checkpoint) -> Places:
    """A target of three generations of drafters, one of another tokenizer, and files to look in."""
    target = root / "target"
    line = [checkpoint("qwen3", 0, scale=SCALE)]
    for seed, noise in ((1, 0.03), (2, 0.05), (3, 0.08)):
        line.append(checkpoint("qwen3", seed, near=(line[0], noise)))
    at = target
    for directory in line:
        shutil.copytree(directory, at)
        at = at / "drafters" / "lm"
    other = root / "other"
    write_other(other, line[1])
    files = (root / "corpus", root / "expected.txt", root / "tree.json")
    places = Places(target, other, *files, **write_feature_drafters(root, target))
    places.tree.write_text(json.dumps(TREE_PARENTS))
    _write_texts(places)
    return places


def write_other(out: Path, source: Path) -> None:
    """A checkpoint with its tokens renumbered and some added: another vocabulary, known quality."""
    shutil.copytree(source, out)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    place = np.random.default_rng(11).permutation(len(alphabet))
    vocabulary = {char: int(place[rank]) for rank, char in enumerate(alphabet)}
    for left, right in OTHER_MERGES:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, OTHER_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    end = tokenizer.token_to_id("<|end|>")
    config = json.loads((out / "config.json").read_text())
    tensors = load_file(source / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    more = np.random.default_rng(12).normal(0, SCALE, (16, embedding.shape[1]))
    changed = np.concatenate([embedding, more.astype(np.float32)])
    changed[place] = embedding[: len(place)]
    changed[end] = embedding[config["eos_token_id"]]
    tensors["model.embed_tokens.weight"] = changed
    config |= {"vocab_size": len(changed), "eos_token_id": end}
    (out / "config.json").write_text(json.dumps(config))
    save_file(tensors, out / "model.safetensors")
    tokenizer.save(str(out / "tokenizer.json"))


def _write_texts(places: Places) -> None:
    """What the target says to the requests in plain letters, for those who look or expect."""
    spoken = [one for one in requests() if one[1].allowed_tokens is not None]
    with opened(places, ("none", "auto", "match")) as engine:
        texts = [
            engine.generate(prompt, params)[0].text.encode("ascii", "ignore").decode()
            for prompt, params in spoken
        ]
    places.prediction.write_text("Well: " + " - ".join(texts))
    places.corpus.mkdir()
    for index, text in enumerate(texts):
        (places.corpus / f"{index}.txt").write_text(text * 2)


def opened(places: Places, words, backend="native", **options) -> Engine:
    options.setdefault("kv_positions", 4096)
    speculation = places.speculation(words)
    return Engine(places.target, speculate=speculation, backend=backend, threads=1, **options)


# --- requests -------------------------------------------------------------------------------------

LETTERS = tuple(range(65, 91))
FEW = (36, 37, 65, 68)  # few tokens repeat soon: there is something to look up


def prompt_of(length: int, seed: int) -> list[int]:
    """Ids of letters and signs that repeat after a while."""
    rng = np.random.default_rng(seed)
    period = rng.integers(10, 90, max(1, min(length, 23))).tolist()
    return [period[at % len(period)] for at in range(length)]


def requests() -> list[tuple[list[int], SamplingParams]]:
    """One batch: every length beside a block's border, every processor, three temperatures."""
    asked = (
        (1, 18, {}),
        (33, 20, {"allowed_tokens": LETTERS}),
        (31, 16, {"temperature": 0.7}),
        (32, 12, {"temperature": 0.7, "top_p": 0.8}),
        (33, 16, {"temperature": 1.3, "top_k": 5}),
        (100, 20, {"temperature": 1.3, "allowed_tokens": FEW}),
        (100, 14, {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.5}),
        (31, 12, {"presence_penalty": 1.5, "logit_bias": {65: 5.0, 66: 6.0}}),
        (150, 16, {"temperature": 1.3, "logit_bias": {70: 6.0, 71: 6.0, 256: -100.0}}),
        (1, 20, {"temperature": 0.7, "stop": ("AD", "%%"), "allowed_tokens": FEW}),
        (32, 14, {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "choice": 3}),
        (150, 22, {"ignore_eos": True}),
    )
    return [
        (prompt_of(length, seed), SamplingParams(max_tokens=most, seed=seed, **params))
        for seed, (length, most, params) in enumerate(asked)
    ]


LENGTHS = (1, 31, 130, 300)  # of prompts: beside a block, a tail, a chunk


def unstopped(lengths=LENGTHS, max_tokens=16, allowed=FEW):
    """Requests at three temperatures, none of which stops before its limit."""
    return [
        (
            prompt_of(length, length),
            SamplingParams(
                temperature=(0.0, 0.7, 1.3)[at % 3], seed=at, max_tokens=max_tokens,
                ignore_eos=True, allowed_tokens=allowed,
            ),
        )
        for at, length in enumerate(lengths)
    ]  # fmt: skip


def completions(engine, asked):
    """All of them in one call."""
    prompts, params = zip(*asked, strict=True)
    return engine.generate(list(prompts), list(params))


def outcomes(made):
    """Of every completion what a user sees."""
    return [(one.token_ids, one.text, one.finish_reason, one.seed) for one in made]


def differences(plain, other) -> list[int]:
    """Places where two lists of outcomes differ."""
    pairs = enumerate(zip(plain, other, strict=True))
    return [place for place, (one, two) in pairs if one != two]

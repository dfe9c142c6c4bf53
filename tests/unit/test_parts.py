"""The parser of the four names, and which drafter is found without one."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from forerun.drafters.features import Featured
from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.plain import Plain
from forerun.engine.discovery import record_of
from forerun.engine.drafting import Openers
from forerun.engine.parts import build_parts
from forerun.engine.shaping import AUTO_CHAIN
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.drafter_notes import DrafterNotes, write_notes
from forerun.models.drafter_spec import BlockSpec, EagleSpec
from forerun.models.spec import ModelSpec, Rope, read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.options import Speculation
from forerun.shapes.chain import Chain
from forerun.shapes.tree import FixedTree, Tree
from forerun.stats import RoundMeter


class Target:
    """A backend in name only: building parts runs nothing."""

    def __init__(self, directory):
        self.spec = read_spec(directory)
        self.num_blocks = 4
        self.directory = directory
        self.is_closed = False

    def close(self):
        self.is_closed = True


@pytest.fixture
def model(tiny_checkpoint_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 0), directory)
    return directory


class Features:
    """A drafter that reads features, in name only."""

    num_blocks = 4

    def __init__(self, directory, target):
        self.directory, self.target = directory, target
        self.spec = BLOCK if "eagle3" not in str(directory) else EAGLE
        self.is_closed = False

    def close(self):
        self.is_closed = True


def body(num_layers):
    return ModelSpec(
        family="qwen3", hidden=8, num_layers=num_layers, num_heads=2, num_kv_heads=1, head_dim=4,
        ffn=8, vocab=272, norm_eps=1e-6, rope=Rope(), max_position=256, tied=True, qkv_bias=False,
        qk_norm=True, eos_ids=(), bos_id=None, dtype="bfloat16",
    )  # fmt: skip


BLOCK = BlockSpec(body(1), 4, True, (0,), 64, 2, 3, (0,), (False,))
EAGLE = EagleSpec(body(1), (0,), 64, 2, 272, has_token_map=False)


@dataclasses.dataclass
class Opened:
    """Openers that remember what they opened."""

    backends: list = dataclasses.field(default_factory=list)

    def model(self, directory):
        self.backends.append(Target(directory))
        return self.backends[-1]

    def features(self, directory, target):
        self.backends.append(Features(directory, target))
        return self.backends[-1]

    @property
    def names(self):
        return [one.directory.name for one in self.backends]

    @property
    def live(self):
        return [one.directory.name for one in self.backends if not one.is_closed]


def build(directory, *names, opened=None):
    tokenizer = load_tokenizer(directory, read_spec(directory))
    opened = opened or Opened()
    opens = Openers(opened.model, opened.features)
    target = Target(directory)
    return build_parts(Speculation(*names), target, directory, tokenizer, opens, RoundMeter())


def live(parts):
    return parts.drafter._drafter


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("auto", Chain(AUTO_CHAIN["lookup"])),
        ("chain:5", Chain(5)),
        ("tree:24", Tree(24)),
        ("tree:2x1", FixedTree((0, 0, 1, 2))),
    ],
)
def test_given_a_shape_then_it_is_the_one_written(model, name, shape):
    assert build(model, "lookup", name).shape == shape


def test_given_a_tree_in_a_file_then_it_is_read_and_a_wrong_one_refused(model, tmp_path):
    path = tmp_path / "tree.json"
    path.write_text("[0, 0, 1]")
    assert build(model, "lookup", f"tree:{path}").shape == FixedTree((0, 0, 1))

    for text, message in (
        ("[0, 5]", "node 2 of a fixed tree has the parent 5"),
        ("[0, true]", "JSON list of parents"),
        ("[", "cannot be read"),
        ("[]", "1 to 256"),
    ):
        path.write_text(text)
        with pytest.raises(OptionError, match=message):
            build(model, "lookup", f"tree:{path}")


@pytest.mark.parametrize(("name", "kind"), [("none", Plain), ("lookup", Lookup), ("auto", Lookup)])
def test_given_a_model_without_drafters_then_these_are_built(model, name, kind):
    parts = build(model, name)

    assert isinstance(live(parts), kind)


def test_given_a_drafter_beside_the_model_then_auto_and_lm_take_it(
    model, tiny_checkpoint_dir, monkeypatch
):
    shutil.copytree(tiny_checkpoint_dir("qwen3", 1), model / "drafters" / "lm")
    monkeypatch.setattr("forerun.engine.discovery.gain", lambda *_: 2.0)

    for name in ("auto", "lm"):
        opened = Opened()
        parts = build(model, name, opened=opened)
        assert isinstance(live(parts), LM)
        assert opened.names == opened.live == ["lm"]  # what was timed is what is used
        assert parts.shape == Chain(AUTO_CHAIN["lm"])


def test_given_a_drafter_that_does_not_pay_then_only_auto_passes_it_over(
    model, tiny_checkpoint_dir, monkeypatch
):
    shutil.copytree(tiny_checkpoint_dir("qwen3", 1), model / "drafters" / "lm")
    monkeypatch.setattr("forerun.engine.discovery.gain", lambda *_: 1.2)
    opened = Opened()

    assert isinstance(live(build(model, "auto", opened=opened)), Lookup)
    assert (opened.names, opened.live) == (["lm"], [])
    assert isinstance(live(build(model, "lm")), LM)


def gains(monkeypatch, **of):
    """What each drafter would win, by the directory beside the model."""
    order = iter([name for name in ("lm", "dspark", "dflash", "eagle3") if name in of])
    monkeypatch.setattr("forerun.engine.discovery.gain", lambda *_: of[next(order)])


@pytest.mark.parametrize(
    ("of", "chosen"),
    [
        ({"lm": 1.5, "dspark": 2.0, "eagle3": 1.8}, "dspark"),
        ({"lm": 2.5, "dspark": 2.0}, "lm"),
        ({"lm": 2.0, "dspark": 2.08}, "lm"),  # too close to be sure, and features have costs
        ({"dflash": 2.0, "eagle3": 2.01}, "eagle3"),  # both read features
        ({"dflash": 1.4, "eagle3": 1.9}, "eagle3"),
        ({"dspark": 1.1}, None),
    ],
)
def test_given_several_drafters_then_the_fastest_is_used_and_the_others_are_closed(
    model, tiny_checkpoint_dir, monkeypatch, of, chosen
):
    for name in of:
        shutil.copytree(tiny_checkpoint_dir("qwen3", 1), model / "drafters" / name)
    gains(monkeypatch, **of)
    monkeypatch.setattr("forerun.engine.drafting.open_drafter", Features)
    opened = Opened()

    parts = build(model, "auto", opened=opened)

    assert sorted(opened.names) == sorted(of)
    assert opened.live == ([chosen] if chosen else [])
    assert isinstance(live(parts), {None: Lookup, "lm": LM}.get(chosen, Featured))


@pytest.mark.parametrize(
    ("name", "holds", "message"),
    [
        (
            "eagle3",
            "dspark",
            "holds a block drafter, not what eagle3 runs: write dflash or",
        ),
        ("dflash", "eagle3", "holds an EAGLE-3 head, not what dflash runs: write eagle3:"),
    ],
)
def test_given_a_name_of_another_kind_of_drafter_then_it_is_refused_by_name(
    model, tmp_path, monkeypatch, name, holds, message
):
    path = tmp_path / holds
    path.mkdir()
    monkeypatch.setattr("forerun.engine.drafting.open_drafter", Features)

    with pytest.raises(IncompatibleSpeculation, match=message):
        build(model, f"{name}:{path}", "chain:2")
    for right in {"dspark": ("dflash", "dspark"), "eagle3": ("eagle3",)}[holds]:
        parts = build(model, f"{right}:{path}", "auto")
        assert parts.drafter.tap_layers == (0,)
        assert parts.pace is not None


def test_given_a_block_then_its_pace_goes_no_further_than_the_block(model, monkeypatch, tmp_path):
    monkeypatch.setattr("forerun.engine.drafting.open_drafter", Features)

    parts = build(model, f"dspark:{tmp_path}")

    assert live(parts).num_levels == BLOCK.max_drafted
    assert parts.pace._longest == BLOCK.max_drafted


def test_given_what_training_measured_in_a_config_then_it_is_read_and_nonsense_is_not(tmp_path):
    path = tmp_path / "config.json"
    assert record_of(tmp_path) == {}
    for text, record in (
        ({"forerun": {"tokens_per_round": {"2": 1.9, "7": 2.8}}}, {2: 1.9, 7: 2.8}),
        ({"forerun": {"tokens_per_round": [1, 2]}}, {}),
        ({"forerun": {"tokens_per_round": {"a": 1}}}, {}),
        ({"forerun": 3}, {}),
    ):
        path.write_text(json.dumps(text))
        assert record_of(tmp_path) == record


def test_given_an_asked_length_then_it_is_kept_and_else_it_is_measured(model):
    assert build(model, "lookup").pace is not None
    assert build(model, "lookup", "chain:5").pace is None
    assert build(model, "none").pace is None


def test_given_a_drafter_of_another_vocabulary_then_it_is_refused_or_passed_over(
    model, tiny_checkpoint_dir, caplog
):
    other = tiny_checkpoint_dir("qwen3", 1, vocab_size=300)
    shutil.copytree(other, model / "drafters" / "lm")

    with pytest.raises(IncompatibleSpeculation, match="has 300 tokens, the target 272"):
        build(model, "lm")
    assert isinstance(live(build(model, "auto")), Lookup)
    assert "not used" in caplog.text


@pytest.mark.parametrize("name", ["lm", "nested(lookup,chain:2,match)"])
def test_given_a_small_model_whose_mode_was_recorded_then_one_line_says_it(model, name, caplog):
    own = model / "drafters" / "lm"
    shutil.copytree(model, own)
    build(model, name)
    assert not caplog.messages  # the control: nothing is guessed

    write_notes(own, DrafterNotes(thinking="off"))
    build(model, name)

    assert len(caplog.messages) == 1
    assert f"drafter {own}: it learned from text" in caplog.messages[0]
    assert "written with thinking off" in caplog.messages[0]


@pytest.mark.parametrize("has_its_tokenizer", [True, False])
def test_given_a_bare_lm_then_the_embedded_one_serves_models_of_its_tokenizer(
    model, tiny_checkpoint_dir, tmp_path, monkeypatch, has_its_tokenizer
):
    family = tmp_path / "family"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 2), family)
    shutil.copytree(tiny_checkpoint_dir("qwen3", 1), family / "drafters" / "lm")
    monkeypatch.setattr("forerun.engine.drafting.resolve_model", lambda _: family)
    if has_its_tokenizer:
        assert isinstance(live(build(model, "lm")), LM)
        return

    (family / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no drafter of its own"):
        build(model, "lm")


def test_given_no_drafter_of_its_own_then_lm_says_where_it_looked(model):
    with pytest.raises(ModelError, match=r"no drafter of its own at .*drafters/lm"):
        build(model, "lm")

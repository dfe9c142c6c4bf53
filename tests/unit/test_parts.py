"""The parser of the four names, and which drafter is found without one."""

from __future__ import annotations

import shutil

import pytest

from forerun.drafters.lm import LM
from forerun.drafters.lookup import Lookup
from forerun.drafters.plain import Plain
from forerun.engine.parts import build_parts
from forerun.engine.shaping import AUTO_CHAIN
from forerun.errors import IncompatibleSpeculation, ModelError, OptionError
from forerun.models.spec import read_spec
from forerun.models.tokenizer import load_tokenizer
from forerun.options import Speculation
from forerun.shapes.chain import Chain
from forerun.shapes.tree import FixedTree, Tree
from forerun.stats import Span


class Target:
    """A backend in name only: building parts runs nothing."""

    def __init__(self, directory):
        self.spec = read_spec(directory)
        self.num_blocks = 4

    def close(self):
        """Nothing was opened."""


@pytest.fixture
def model(tiny_checkpoint_dir, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 0), directory)
    return directory


def build(directory, *names):
    tokenizer = load_tokenizer(directory, read_spec(directory))
    speculation = Speculation(*names)
    return build_parts(speculation, Target(directory), directory, tokenizer, Target, Span())


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
    monkeypatch.setattr("forerun.engine.drafting.draft_pays", lambda *_: True)

    for name in ("auto", "lm"):
        parts = build(model, name)
        assert isinstance(live(parts), LM)
        assert parts.shape == Chain(AUTO_CHAIN["lm"])


def test_given_a_drafter_that_does_not_pay_then_only_auto_passes_it_over(
    model, tiny_checkpoint_dir, monkeypatch
):
    shutil.copytree(tiny_checkpoint_dir("qwen3", 1), model / "drafters" / "lm")
    monkeypatch.setattr("forerun.engine.drafting.draft_pays", lambda *_: False)

    assert isinstance(live(build(model, "auto")), Lookup)
    assert isinstance(live(build(model, "lm")), LM)


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

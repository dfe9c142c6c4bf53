"""Tokenizers: bytes in, the same bytes out; another model's tokenizer is refused; templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from forerun.errors import ModelError
from forerun.models import chat_template
from forerun.models.spec import read_spec
from forerun.models.tokenizer import Tokenizer, load_tokenizer

Write = Callable[..., Path]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def model_dir(tiny_checkpoint_dir: Write, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint_dir("qwen3"), tmp_path / "model"))


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint_dir: Write) -> Tokenizer:
    return load(tiny_checkpoint_dir("qwen3"))


def load(directory: Path) -> Tokenizer:
    return load_tokenizer(directory, read_spec(directory))


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert tokenizer.decode(ids) == text == tokenizer.fast.decode(ids)


def test_half_a_character_is_bytes_but_no_text(tokenizer: Tokenizer) -> None:
    first, *rest = tokenizer.encode("é")
    assert tokenizer.token_bytes(first) == b"\xc3"
    assert tokenizer.decode([first]) == "\ufffd"
    assert tokenizer.decode([first, *rest]) == "é"


def test_special_and_unused_ids_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_ids == (256,)
    assert tokenizer.token_bytes(256) == b""
    assert tokenizer.token_bytes(271) == b""
    assert tokenizer.vocab_size == 257


def test_added_tokens_that_are_not_special_are_text(model_dir: Path) -> None:
    path = model_dir / "tokenizer.json"
    fast = FastTokenizer.from_file(str(path))
    fast.add_tokens([AddedToken("<tab Ġ>", special=False)])
    fast.save(str(path))
    assert load(model_dir).token_bytes(257) == "<tab Ġ>".encode()


def test_sentencepiece_pieces_are_text_and_bytes(model_dir: Path) -> None:
    vocab = {"<unk>": 0, "\u2581def": 1, "x": 2, "<0x0A>": 3, "\u2581": 4, "<|end|>": 256}
    fast = FastTokenizer(models.BPE(vocab, [], byte_fallback=True))
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.save(str(model_dir / "tokenizer.json"))
    tokenizer = load(model_dir)
    assert tokenizer.decode([1, 4, 2, 3]) == " def x\n" == fast.decode([1, 4, 2, 3])


def test_padding_and_truncation_of_the_file_do_not_apply(model_dir: Path) -> None:
    path = model_dir / "tokenizer.json"
    fast = FastTokenizer.from_file(str(path))
    fast.enable_truncation(4)
    fast.enable_padding(length=8)
    fast.save(str(path))
    assert len(load(model_dir).encode("forerun")) == 7


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(model_dir: Path) -> None:
    fast = FastTokenizer.from_file(str(model_dir / "tokenizer.json"))
    fast.add_tokens([f"<extra-{n}>" for n in range(20)])
    fast.save(str(model_dir / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"ids up to 276, the model has 272 tokens.*another model"):
        load(model_dir)


def test_a_tokenizer_without_the_models_end_of_text_is_refused(model_dir: Path) -> None:
    FastTokenizer(models.BPE({"a": 0}, [])).save(str(model_dir / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"no token for the model's end-of-text id 256"):
        load(model_dir)


def test_an_empty_tokenizer_is_refused(model_dir: Path) -> None:
    FastTokenizer(models.BPE({}, [])).save(str(model_dir / "tokenizer.json"))
    with pytest.raises(ModelError, match="empty vocabulary"):
        load(model_dir)


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ("tokenizer.model", r"only a SentencePiece tokenizer\.model.*save_pretrained"),
        ("vocab.json", r"only the old vocab\.json.*save_pretrained"),
        ("config.json", r"tokenizer\.json does not exist"),
    ],
)
def test_a_missing_tokenizer_says_what_to_do(model_dir: Path, present: str, message: str) -> None:
    (model_dir / "tokenizer.json").unlink()
    (model_dir / present).touch()
    config = model_dir / "config.json"
    config.write_text(config.read_text() or "{}")
    with pytest.raises(ModelError, match=message):
        load(model_dir)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "1.0"}', "\0"])
def test_an_unreadable_tokenizer_is_refused(model_dir: Path, content: str) -> None:
    (model_dir / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer"):
        load(model_dir)


def test_the_end_of_text_may_stand_in_the_tokenizers_config(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    assert load(model_dir).eos_ids == ()
    write_tokenizer_config(model_dir, eos_token={"content": "<|end|>"})
    assert load(model_dir).eos_ids == (256,)


MESSAGES = [{"role": "user", "content": "hello"}]


def test_the_template_makes_the_prompt(model_dir: Path) -> None:
    write_tokenizer_config(model_dir, chat_template=TEMPLATE, bos_token="<s>")
    assert load(model_dir).render_chat(MESSAGES) == "<s><user>hello\n<assistant>"


def test_a_template_file_comes_before_the_config(model_dir: Path) -> None:
    write_tokenizer_config(model_dir, chat_template=[{"name": "default", "template": "config"}])
    assert load(model_dir).render_chat(MESSAGES) == "config"
    (model_dir / "chat_template.jinja").write_text("file")
    assert load(model_dir).render_chat(MESSAGES) == "file"


def test_templates_that_are_none(model_dir: Path) -> None:
    write_tokenizer_config(model_dir, chat_template=["a", {"name": "other", "template": "b"}])
    assert load(model_dir).template is None
    (model_dir / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template\.jinja cannot be read"):
        load(model_dir)


def test_a_model_without_a_template_says_so(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        tokenizer.render_chat(MESSAGES)


def test_what_templates_of_real_models_use() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%%') }}"
    )
    assert chat_template.render(template, MESSAGES * 2, {}) == json.dumps(MESSAGES[0]) + "%"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{{ 'a' * 1000000000 }}", "a factor above"),
        ("{{ 2 ** 1000000000 }}", "a factor above"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "failed"),
        ("{% for i in range(99999) %}{{ 'y' * 99 }}{% endfor %}", "wrote more than"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% if %}", "failed"),
        ("{{ 1 / 0 }}", "failed"),
        ("{{ undefined.attribute }}", "failed"),
        ("x" * 250_001, "at most 250000"),
    ],
)
def test_a_template_can_do_no_harm(template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        chat_template.render(template, MESSAGES, {})


def write_tokenizer_config(directory: Path, **values: Any) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(values))

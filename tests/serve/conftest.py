"""One engine and one server for a module; chat with and without a template."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("forerun._native", reason="the native core is not built")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

import httpx2
import openai
from tokenizers import Tokenizer

from forerun import Engine, Speculation

from .live import Live, serving
from .structured_parts import MARK
from .structured_parts import TEMPLATE as TOOL_TEMPLATE

TEMPLATE = (
    "{% for one in messages %}{% if one.role == 'assistant' and loop.first %}"
    "{{ raise_exception('/secret/path must not be told') }}{% endif %}"
    "[{{ one.role }}] {{ one.content }}\n{% endfor %}[assistant] "
)


@pytest.fixture(scope="session")
def chat_model(
    tiny_checkpoint_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model with a chat template, peaked enough for drafts to be kept."""
    plain = tiny_checkpoint_dir("qwen3", 3, max_position_embeddings=40_960, scale=0.6)
    directory = tmp_path_factory.mktemp("served") / "tiny-chat"
    shutil.copytree(plain, directory)
    config = {"chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def opened(model: Path) -> Engine:
    """Drafts with `lookup`, on one thread."""
    speculation = Speculation("lookup", "chain:4")
    return Engine(model, speculate=speculation, threads=1, kv_positions=163_840)


@pytest.fixture(scope="session")
def engine(chat_model: Path) -> Iterator[Engine]:
    """The engine of `server`."""
    with opened(chat_model) as live:
        yield live


@pytest.fixture(scope="session")
def spare_engine(chat_model: Path) -> Iterator[Engine]:
    """For tests that serve with settings of their own: an engine has one service at a time."""
    with opened(chat_model) as live:
        yield live


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Live]:
    """A server with the tests' usual settings."""
    with serving(engine) as live:
        yield live


@pytest.fixture(scope="module")
def marked(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose model's template knows of tools."""
    directory = tmp_path_factory.mktemp("marked") / "tiny-tools"
    shutil.copytree(chat_model, directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TOOL_TEMPLATE}))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([MARK])  # one token, as in the models that know it
    tokenizer.save(str(directory / "tokenizer.json"))
    with opened(directory) as engine, serving(engine) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[openai.OpenAI]:
    """The client that users have."""
    with server.client() as live:
        yield live


@pytest.fixture(scope="module")
def http(server: Live) -> Iterator[httpx2.Client]:
    """A client that sends what it is told."""
    with server.http() as live:
        yield live


@pytest.fixture
def process(
    chat_model: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`forerun serve` as users run it, and its address; the parameter is more of its options."""
    command = [sys.executable, "-m", "forerun.cli", "serve", "--port", "0", "--json"]
    command += ["-m", str(chat_model), "-d", "none", "--threads", "1", "--backend", "native"]
    command += getattr(request, "param", [])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        known = json.loads(one.stdout.readline())
        assert known["model"] == "tiny-chat"
        try:
            yield one, known["address"]
        finally:
            one.kill()

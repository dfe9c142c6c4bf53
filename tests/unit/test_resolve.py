"""From names to directories: paths, the embedded model, the local cache, a download."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from forerun.errors import ModelError
from forerun.models import resolve
from forerun.models.resolve import cache_root, resolve_model

VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def put_in_cache(*, commit: str = "c0ffee", weights: bool = True) -> Path:
    """A repository `org/name` as the hub library lays it out."""
    folder = cache_root() / "models--org--name"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    if weights:
        (snapshot / "model.safetensors").touch()
    return snapshot


def test_a_directory_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_file_or_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="is a file: give the directory"):
        resolve_model(str(tmp_path / "model.gguf"))
    for name in ("nothing", "./no/where", "/a/b/c", "org/name/more", ""):
        with pytest.raises(ModelError, match="no model"):
            resolve_model(name)


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resolve, "_EMBEDDED_ROOT", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(ModelError, match=r"embedded model is not at .*give --model DIR"):
        resolve_model("forerun-code")
    (tmp_path / "forerun-code").mkdir()
    (tmp_path / "forerun-code" / "config.json").touch()
    assert resolve_model("forerun-code") == tmp_path / "forerun-code"


def test_a_cached_repository_needs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    snapshot = put_in_cache()
    assert resolve_model("org/name") == snapshot


def test_the_main_reference_is_followed() -> None:
    put_in_cache(commit="01d")
    newer = put_in_cache(commit="2e3")
    assert resolve_model("org/name") == newer


def test_the_cache_is_where_the_hub_library_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_root() == tmp_path / "home" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(tmp_path / "old"))
    assert cache_root() == tmp_path / "old"
    monkeypatch.setenv("HF_HUB_CACHE", "$HF_ROOT/new")
    monkeypatch.setenv("HF_ROOT", str(tmp_path))
    assert cache_root() == tmp_path / "new"


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"models--org--name.*HF_HUB_OFFLINE forbids"):
        resolve_model("org/name")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    put_in_cache(weights=False)  # a download that was not finished
    with pytest.raises(ModelError, match=r"not in the local cache.*pip install 'forerun\[hub\]'"):
        resolve_model("org/name")


def test_a_download_takes_only_what_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked[repository] = options
        return str(tmp_path)

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    assert resolve_model("org/name") == tmp_path
    assert asked == {"org/name": {"allow_patterns": ["*.safetensors", "*.json", "*.jinja"]}}


def test_a_failed_download_gives_the_first_line_of_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host\nand a long tail")

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    with pytest.raises(ModelError, match=r"could not be downloaded \(no route to host\): check"):
        resolve_model("org/name")

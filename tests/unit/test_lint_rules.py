"""The linter forbids code out of data: pickles, eval, URLs; each forbidden thing is tried."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ruff", reason="the extra `test` is not installed")

ROOT = Path(__file__).resolve().parent.parent.parent
BANNED = "TID251"
RULES = {
    "S102": "exec(text)",
    "S301": "pickle.loads(data)",
    "S302": "marshal.loads(data)",
    "S307": "eval(text)",
    "S310": "urllib.request.urlopen(text)",
    "S506": "yaml.load(text, yaml.Loader)",
}
IMPORTED = {"S301": "pickle", "S302": "marshal", "S310": "urllib.request", "S506": "yaml"}
BANNED_NAMES = (
    "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch.load", "torch.save",
    "torch.hub", "urllib.request", "urllib3", "http.client", "ftplib", "aiohttp", "httpx", "httpx2",
    "requests", "huggingface_hub",
)  # fmt: skip
ANYWHERE = "src/forerun/models/anything.py"


def found_in(source: str, directory: Path, name: str = ANYWHERE) -> set[tuple[str, str]]:
    """Code and message of what the linter has against a source that lies at `name`."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    (directory / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    command = [sys.executable, "-m", "ruff", "check", "--config", "pyproject.toml", "--no-cache"]
    done = subprocess.run(
        [*command, "--output-format", "json", name],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = {(one["code"], one["message"]) for one in json.loads(done.stdout)}
    assert bool(found) == bool(done.returncode), done.stderr
    return found


def codes_in(source: str, directory: Path, name: str = ANYWHERE) -> set[str]:
    return {code for code, _ in found_in(source, directory, name)}


def use_of(rule: str) -> str:
    names = "text: str, data: bytes"
    imported = f"import {IMPORTED[rule]}\n\n\n" if rule in IMPORTED else ""
    return f"{imported}def use({names}) -> object:\n    return {RULES[rule]}, text, data\n"


def import_of(name: str) -> str:
    package, _, last = name.rpartition(".")
    imported = f"from {package} import {last}" if package else f"import {name}"
    return f"{imported}\n\nNAME = {last}\n"


@pytest.mark.parametrize("rule", RULES)
def test_given_code_that_data_could_reach_then_its_rule_says_so(rule: str, tmp_path: Path) -> None:
    assert rule in codes_in(use_of(rule), tmp_path)


@pytest.mark.parametrize("name", BANNED_NAMES)
def test_given_a_name_that_opens_pickles_or_addresses_then_it_is_banned(
    name: str, tmp_path: Path
) -> None:
    [told] = [what for code, what in found_in(import_of(name), tmp_path) if code == BANNED]

    assert told.startswith(f"`{name}` is banned: ")


def test_given_a_use_by_its_whole_name_then_it_is_banned_too(tmp_path: Path) -> None:
    assert BANNED in codes_in('import torch\n\nSTATE = torch.load("one.pt")\n', tmp_path)


def test_given_what_is_allowed_then_nothing_is_said(tmp_path: Path) -> None:
    """The control: the rules see a difference."""
    source = (
        "import json\nfrom urllib.parse import urlsplit\n\nimport torch\n"
        "from safetensors import safe_open\n\n"
        'VALUES = json.loads("[]"), urlsplit("a:b"), torch.zeros(2), safe_open\n'
    )

    assert codes_in(source, tmp_path) == set()


def test_given_the_whole_list_of_what_is_banned_then_every_name_of_it_was_tried() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    banned: dict[str, Any] = lint["lint"]["flake8-tidy-imports"]["banned-api"]

    assert set(banned) == set(BANNED_NAMES)


def test_given_exemptions_then_one_file_of_the_library_has_one_and_opens_no_pickle(
    tmp_path: Path,
) -> None:
    pickles = use_of("S301")
    hub = import_of("huggingface_hub")
    resolve = "src/forerun/models/resolve.py"

    assert BANNED in codes_in(hub, tmp_path)
    assert codes_in(hub, tmp_path, resolve) == set()
    for name in (resolve, "tests/unit/test_one.py", "benchmarks/one.py"):
        assert "S301" in codes_in(pickles, tmp_path, name)


def test_given_the_library_then_no_line_of_it_takes_itself_out() -> None:
    taken_out = re.compile(r"#\s*(ruff:\s*)?noqa(?!:)|noqa:.*\b(S\d{3}|TID251)\b", re.IGNORECASE)
    lines = [
        f"{path.name}: {line}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if taken_out.search(line)
    ]

    assert taken_out.search("pickle.loads(data)  # noqa: S301")
    assert taken_out.search("import pickle  # noqa")
    assert lines == []

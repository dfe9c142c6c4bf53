"""A training's state on disk: what is read is what was written, and nothing else is believed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import save_file  # noqa: E402  (needs the extra)

from forerun.errors import OptionError  # noqa: E402
from forerun.train.checkpoints import read_state, write_state  # noqa: E402


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator)
    return {
        "model": {"a.weight": weight.to(torch.bfloat16), "a": {"weight": weight.T}},
        "steps": [
            {"step": torch.tensor(7.0), "momentum": weight[:0]},
            {"rate": 0.1 + 0.2, "betas": (0.9,)},
        ],
        "names": ["$tensor", None, True],
        "noise": torch.get_rng_state(),
    }


def test_given_a_state_then_every_bit_of_it_comes_back(tmp_path: Path) -> None:
    written = state()
    write_state(written, tmp_path / "one")

    read = read_state(tmp_path / "one")

    assert read["names"] == written["names"]
    assert read["steps"][1] == written["steps"][1]
    for found, wanted in (
        (read["model"]["a.weight"], written["model"]["a.weight"]),
        (read["model"]["a"]["weight"], written["model"]["a"]["weight"]),
        (read["steps"][0]["step"], written["steps"][0]["step"]),
        (read["steps"][0]["momentum"], written["steps"][0]["momentum"]),
        (read["noise"], written["noise"]),
    ):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)


def weights_alone(path: Path) -> None:
    save_file({"a": torch.zeros(2).numpy()}, path)


def part_of_a_file(path: Path) -> None:
    write_state(state(), path)
    path.write_bytes(path.read_bytes()[:-1])


def pickle_of_a_bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


class Bomb:
    """Opened as a pickle it writes a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("write", [weights_alone, part_of_a_file, pickle_of_a_bomb])
def test_given_another_file_then_it_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "one")

    with pytest.raises(OptionError, match="is no checkpoint of a training"):
        read_state(tmp_path / "one")

    assert not (tmp_path / "exploded").exists()


def test_given_the_bomb_where_pickles_are_opened_then_it_explodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.chdir(tmp_path)
    pickle_of_a_bomb(tmp_path / "one")

    pickle.loads((tmp_path / "one").read_bytes())  # noqa: S301  the control

    assert (tmp_path / "exploded").exists()

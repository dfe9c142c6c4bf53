"""A drafter's card says what was asked of it and what came out."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("torch")

from feature_cases import block_spec, eagle_spec

from forerun.models.drafter_spec import MarkovKind
from forerun.train.drafter_card import write_drafter_card

FIGURES = {
    "T=0": {"tokens_per_round": 2.5, "by_position": [0.75, 0.5]},
    "T=0.7": {"tokens_per_round": 1.25, "by_position": [0.25]},
}
TRAINING = {"command": "forerun train dspark --out X", "num_tokens": 12345, "num_steps": 7}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (block_spec(), "A DSpark drafter"),
        (replace(block_spec(), markov_rank=0, is_shifted=False), "A DFlash drafter"),
        (eagle_spec(), "An EAGLE-3 head"),
    ],
)
def test_given_figures_then_the_card_has_them_by_position(tmp_path, spec, words):
    training = TRAINING | {"minutes": 3.2}

    write_drafter_card(tmp_path / "card.md", spec, training, FIGURES, "a machine, 2 cores")

    card = (tmp_path / "card.md").read_text()
    assert words in card
    assert "| T=0 | 2.50 | 75 % | 50 % |" in card
    assert "    forerun train dspark --out X" in card
    assert "7 steps in 3 minutes on a machine, 2 cores" in card


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (block_spec(), "the table of tokens and the head are the target's."),
        (
            block_spec(draft_vocab=24),
            "the table of tokens is the target's,\na head over 24 of 40 tokens is its own.",
        ),
        (eagle_spec(), "One layer and a head over 40 of 40\ntokens"),
    ],
)
def test_given_a_head_then_the_card_says_how_much_of_the_vocabulary_it_knows(
    tmp_path, spec, sentence
):
    write_drafter_card(tmp_path / "card.md", spec, None, FIGURES, "a machine")

    assert sentence in (tmp_path / "card.md").read_text()


def test_given_no_facts_of_a_training_then_the_card_claims_none(tmp_path):
    write_drafter_card(tmp_path / "card.md", block_spec(), None, FIGURES, "a machine")

    assert "Training" not in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "hears the token before it (Markov head `vanilla` of rank 4)."),
        (
            {"markov_kind": MarkovKind.GATED},
            "hears the token before it, as far as its own state lets it (Markov head `gated` of"
            " rank 4).",
        ),
        (
            {"markov_kind": MarkovKind.RNN, "markov_rank": 6},
            "hears every token drafted before it, through a recurrent state (Markov head `rnn` of"
            " rank 6).",
        ),
        ({"markov_rank": 0}, "No slot hears what the ones before it became."),
    ],
)
def test_given_a_markov_head_then_the_card_says_what_a_slot_hears(tmp_path, changes, sentence):
    write_drafter_card(tmp_path / "card.md", block_spec(**changes), None, FIGURES, "a machine")

    assert sentence in (tmp_path / "card.md").read_text()

"""The counter noise: published vectors, and independence of everything but its key."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.noise import Purpose, draw_seed, gumbel, philox, words

# Random123's kat_vectors: counter, key, output of Philox4x32-10.
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_given_a_published_vector_then_philox_gives_its_output(counter, key, expected):
    output = philox(np.array(counter, np.uint64)[:, None], key)

    assert tuple(output[:, 0].tolist()) == expected


def test_given_a_token_then_its_word_is_lane_token_and_3_of_counter_token_shifted_2():
    seed, choice, position, vocab = 0x1234_5678_9ABC_DEF0, 3, 77, 11

    made = words(seed, choice, Purpose.DRAFT, position, vocab)

    for token in range(vocab):
        counter = np.array([token >> 2, position, choice, 1], np.uint64)[:, None]
        lanes = philox(counter, (0x9ABC_DEF0, 0x1234_5678))[:, 0]
        assert made[token] == lanes[token & 3]


def test_given_any_other_key_then_the_words_differ():
    base = words(1, 0, Purpose.VERDICT, 5, 64)

    others = [
        words(2, 0, Purpose.VERDICT, 5, 64),
        words(1 + 2**32, 0, Purpose.VERDICT, 5, 64),
        words(1, 1, Purpose.VERDICT, 5, 64),
        words(1, 0, Purpose.DRAFT, 5, 64),
        words(1, 0, Purpose.VERDICT, 6, 64),
    ]

    assert all(np.count_nonzero(other == base) == 0 for other in others)


def test_given_a_larger_vocabulary_then_the_words_of_its_first_tokens_stay():
    assert np.array_equal(words(9, 0, 0, 3, 1000)[:13], words(9, 0, 0, 3, 13))


def test_given_extreme_words_then_the_gumbel_noise_is_finite():
    noise = gumbel(np.array([0, 1, 2**31, 2**32 - 1], np.uint32))

    assert np.all(np.isfinite(noise))
    assert np.all(np.diff(noise) > 0)


def test_given_many_words_then_their_gumbel_noise_has_the_known_mean_and_variance():
    noise = gumbel(words(5, 0, Purpose.VERDICT, 0, 1 << 16))

    assert abs(noise.mean() - 0.5772156649) < 0.02
    assert abs(noise.var() - np.pi**2 / 6) < 0.05


def test_given_no_seed_then_the_one_drawn_is_exact_in_json():
    seeds = {draw_seed() for _ in range(20)}

    assert len(seeds) == 20
    assert all(0 <= seed < 2**53 for seed in seeds)

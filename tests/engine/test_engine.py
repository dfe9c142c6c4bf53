"""The engine from outside: pieces, ends, limits, failures, and leaving at any moment."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from forerun import (
    BackendError,
    CapacityError,
    EngineClosed,
    ModelError,
    OptionError,
    SamplingParams,
    Speculation,
)

ENDLESS = {"ignore_eos": True, "seed": 3}


@pytest.fixture
def engine(open_engine):
    return open_engine("lookup")


def num_free(engine):
    return engine._parts.slots.num_free


def test_given_a_stream_then_its_pieces_are_the_completion(engine):
    params = SamplingParams(temperature=1.0, max_tokens=30, **ENDLESS)

    pieces = list(engine.stream("hello hello hello", params))
    whole = engine.generate("hello hello hello", params)[0]

    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(token for piece in pieces for token in piece.token_ids) == whole.token_ids
    assert all(
        len(piece.token_ids) == len(piece.texts) == len(piece.is_drafted) for piece in pieces
    )
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert sum(piece.num_accepted for piece in pieces) == whole.stats.num_accepted
    assert not any(piece.is_drafted[-1] for piece in pieces)
    assert len(pieces) == whole.stats.num_rounds


def test_given_a_completion_then_it_names_its_numerics_seed_and_cost(engine, backend):
    one = engine.generate("abc", SamplingParams(max_tokens=5, temperature=1.0))[0]

    assert one.numerics == {"torch": "torch-cpu-float32", "native": "canonical-bf16"}[backend]
    assert one.exactness == {"torch": "tokens", "native": "bits"}[backend]
    again = engine.generate("abc", SamplingParams(max_tokens=5, temperature=1.0, seed=one.seed))[0]
    assert again.token_ids == one.token_ids
    stats = one.stats
    assert 0 < stats.engine_s < stats.decode_s
    assert stats.verify_s < stats.decode_s
    assert stats.tokens_per_s > 0


def test_given_the_second_arithmetic_then_results_name_it_and_drafts_change_no_token(
    open_engine, backend, lm_name
):
    if backend == "torch":
        pytest.skip("a path of the native core")
    params = SamplingParams(temperature=1.0, max_tokens=30, **ENDLESS)
    plain, drafted = (
        open_engine(drafter, isa="float32-portable").generate("hello hello", params)[0]
        for drafter in ("none", lm_name)
    )

    assert (plain.numerics, plain.exactness) == ("canonical-float32", "bits")
    assert drafted.stats.num_accepted > 0
    assert drafted.token_ids == plain.token_ids


def test_given_no_seed_then_every_request_draws_its_own(engine):
    completions = engine.generate(["a", "a"], SamplingParams(temperature=1.0, max_tokens=8))

    assert completions[0].seed != completions[1].seed


def test_given_many_prompts_then_results_keep_their_order(engine):
    prompts = [[token] * 3 for token in range(40, 60)]

    together = engine.generate(prompts, SamplingParams(max_tokens=4, **ENDLESS))

    alone = [engine.generate(one, SamplingParams(max_tokens=4, **ENDLESS))[0] for one in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_given_a_stopping_token_then_it_is_the_last_id_and_no_text(engine):
    params = SamplingParams(max_tokens=9, logit_bias={256: 100.0})

    one = engine.generate("abc", params)[0]

    assert (one.token_ids, one.text, one.finish_reason) == ((256,), "", "stop")
    ignored = engine.generate(
        "abc", SamplingParams(max_tokens=9, logit_bias={256: 100.0}, **ENDLESS)
    )
    assert ignored[0].token_ids == (256,) * 9


def test_given_a_stop_string_then_the_text_ends_before_it_and_its_tokens_stay(engine):
    free = engine.generate("abc", SamplingParams(max_tokens=12, allowed_tokens=(65, 66, 67)))[0]
    stop = free.text[4:6]
    first = free.text.index(stop)

    one = engine.generate(
        "abc", SamplingParams(max_tokens=12, allowed_tokens=(65, 66, 67), stop=(stop,))
    )[0]

    assert (one.text, one.finish_reason) == (free.text[:first], "stop")
    assert one.token_ids == free.token_ids[: first + 2]


def test_given_one_token_to_make_then_one_is_made(engine):
    one = engine.generate("abc abc abc", SamplingParams(max_tokens=1, **ENDLESS))[0]

    assert (len(one.token_ids), one.finish_reason, one.stats.num_drafted) == (1, "length", 0)


def test_given_logprobs_then_each_token_has_its_own_and_the_best(engine):
    one = engine.generate("abab", SamplingParams(max_tokens=6, logprobs=3, **ENDLESS))[0]

    assert [entry.token for entry in one.logprobs] == list(one.token_ids)
    for entry in one.logprobs:
        assert entry.top[0] == (entry.token, entry.logprob)  # greedy
        assert len(entry.top) == 3
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]


# --- limits --------------------------------------------------------------------------------------


def test_given_a_prompt_beyond_the_model_then_both_numbers_are_named(open_engine):
    engine = open_engine("none")

    with pytest.raises(CapacityError, match=r"600 tokens, the model's context has 512"):
        engine.generate([[65] * 600])
    with pytest.raises(CapacityError, match=r"512 tokens"):
        engine.stream([65] * 512)


def test_given_a_prompt_beyond_the_memory_then_both_numbers_are_named(open_engine):
    engine = open_engine("none", kv_positions=64)

    with pytest.raises(CapacityError, match=r"100 tokens, the engine's K/V memory has 64"):
        engine.generate([[65] * 100])


def test_given_more_tokens_than_the_context_then_it_ends_there_by_length(open_engine, lm_name):
    for drafter in ("none", "lookup", lm_name):
        one = open_engine(drafter).generate(
            [[65] * 500], SamplingParams(max_tokens=100, temperature=0.5, **ENDLESS)
        )[0]

        assert (len(one.token_ids), one.finish_reason) == (12, "length")


def test_given_one_bad_prompt_of_many_then_nothing_is_run(engine):
    with pytest.raises(CapacityError):
        engine.generate(["fine", [65] * 600])

    assert num_free(engine) == engine._parts.slots.num_blocks


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", {}, "prompt is empty"),
        ([], {}, "prompt is empty"),
        ([65, 272], {}, r"prompt: token id 272 is outside the vocabulary \[0, 272\)"),
        ([-1], {}, "token id -1"),
        ("a", {"logit_bias": {300: 1.0}}, "logit_bias: token id 300"),
        ("a", {"allowed_tokens": (1, 999)}, "allowed_tokens: token id 999"),
        ("a", {"stop_token_ids": (-5,)}, "stop_token_ids: token id -5"),
    ],
)
def test_given_ids_outside_the_vocabulary_then_they_are_named(engine, prompt, params, message):
    with pytest.raises(OptionError, match=message):
        engine.generate([prompt], SamplingParams(**params))


def test_given_params_for_another_number_of_prompts_then_both_are_named(engine):
    with pytest.raises(OptionError, match="2 prompts, 3 params"):
        engine.generate(["a", "b"], [SamplingParams()] * 3)


def test_given_nothing_to_do_then_nothing_is_returned(engine):
    assert engine.generate([], []) == []


# --- failures of a request -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def nan_dir(tiny_checkpoint_dir, tmp_path_factory):
    """A model that answers NaN once it has read token 5."""
    directory = tmp_path_factory.mktemp("nan") / "model"
    shutil.copytree(tiny_checkpoint_dir("qwen3", 0, tie_word_embeddings=False), directory)
    weights = load_file(directory / "model.safetensors")
    embedding = np.array(weights["model.embed_tokens.weight"])
    embedding[5] = np.nan
    save_file({**weights, "model.embed_tokens.weight": embedding}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("drafter", ["none", "lookup", "itself"])
def test_given_nan_logits_then_that_request_fails_and_the_others_go_on(
    open_engine, nan_dir, drafter
):
    name = f"lm:{nan_dir}" if drafter == "itself" else drafter
    engine = open_engine(name, model=nan_dir)
    params = SamplingParams(max_tokens=12, logit_bias={5: -100.0}, **ENDLESS)

    good, bad, also_good = engine.generate([[65, 66], [65, 5, 66], [70] * 40], params)

    assert bad.finish_reason == "error"
    assert isinstance(bad.error, BackendError)
    assert "position 3" in str(bad.error)
    alone = engine.generate([[65, 66], [70] * 40], params)
    assert [good.token_ids, also_good.token_ids] == [one.token_ids for one in alone]
    with pytest.raises(BackendError, match="NaN"):
        engine.generate([65, 5, 66], params)
    with pytest.raises(BackendError, match="NaN"):
        list(engine.stream([65, 5, 66], params))
    assert num_free(engine) == engine._parts.slots.num_blocks


def test_given_a_drafted_token_that_breaks_the_model_then_the_request_goes_on(open_engine, nan_dir):
    params = SamplingParams(max_tokens=12, logit_bias={5: -100.0}, **ENDLESS)
    plain = open_engine("none", model=nan_dir).generate([65, 66], params)[0]
    engine = open_engine("lookup", model=nan_dir)
    engine._parts.drafter._drafter._propose = _drafts_five

    one = engine.generate([65, 66], params)[0]

    assert one.token_ids == plain.token_ids
    assert one.stats.num_drafted > 0
    assert one.stats.num_failures == 0


def _drafts_five(row):
    from forerun.draft import Draft, Draw
    from forerun.tree import TokenTree

    return Draft(TokenTree.chain([row.tokens[-1], *[5] * row.max_drafted]), Draw.POINT)


def test_given_masks_that_leave_nothing_then_the_request_fails(engine):
    # The model's own logits of the only allowed token are finite, so nothing fails here; a
    # penalty cannot remove the last one either.
    one = engine.generate(
        "abc", SamplingParams(max_tokens=3, allowed_tokens=(65,), temperature=1.0, min_p=1.0)
    )[0]

    assert one.token_ids == (65, 65, 65)


# --- leaving -------------------------------------------------------------------------------------


def test_given_a_stream_left_early_then_its_memory_is_given_back(engine):
    stream = engine.stream("abc", SamplingParams(max_tokens=50, **ENDLESS))
    next(stream)
    assert num_free(engine) < engine._parts.slots.num_blocks

    stream.close()

    assert num_free(engine) == engine._parts.slots.num_blocks


def test_given_two_streams_in_turns_then_each_is_as_if_alone(open_engine, lm_name):
    engine = open_engine(lm_name)
    params = SamplingParams(max_tokens=20, temperature=0.8, **ENDLESS)
    alone = [list(engine.stream(prompt, params)) for prompt in ("first one", "second one")]

    streams = [engine.stream(prompt, params) for prompt in ("first one", "second one")]
    taken = [[], []]
    while any(streams):
        for place, stream in enumerate(streams):
            piece = next(stream, None) if stream else None
            if piece is None:
                streams[place] = None
            else:
                taken[place].append(piece)

    assert taken == alone


def test_given_two_threads_then_their_rounds_take_turns(open_engine, lm_name):
    engine = open_engine(lm_name)
    params = SamplingParams(max_tokens=20, temperature=0.8, **ENDLESS)
    prompts = ["first one", "second one", "third", "and a fourth"]
    alone = [engine.generate(prompt, params)[0].token_ids for prompt in prompts]

    with ThreadPoolExecutor(len(prompts)) as pool:
        made = list(pool.map(lambda prompt: engine.generate(prompt, params)[0].token_ids, prompts))

    assert made == alone


def test_given_open_streams_that_hold_all_memory_then_another_is_refused_with_both_numbers(
    open_engine,
):
    engine = open_engine("none", kv_positions=64)
    first = engine.stream("abc", SamplingParams(max_tokens=60, **ENDLESS))
    next(first)

    with pytest.raises(CapacityError, match=r"63 positions .* leave 0 free"):
        engine.generate("abc", SamplingParams(max_tokens=60, **ENDLESS))

    first.close()
    assert len(engine.generate("abc", SamplingParams(max_tokens=60, **ENDLESS))) == 1


@pytest.mark.parametrize("verb", ["forward", "commit", "select", "propose"])
def test_given_an_interrupt_anywhere_then_the_engine_goes_on_and_can_be_closed(
    open_engine, lm_name, monkeypatch, verb
):
    engine = open_engine(lm_name)
    params = SamplingParams(max_tokens=10, **ENDLESS)
    expected = engine.generate("abc", params)[0].token_ids
    part = engine._parts.drafter._drafter._backend if verb == "propose" else engine._parts.target

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(part, verb, interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate("abc", params)

    assert num_free(engine) == engine._parts.slots.num_blocks
    assert engine.generate("abc", params)[0].token_ids == expected
    engine.close()


def test_given_a_closed_engine_then_every_use_says_so(engine):
    stream = engine.stream("abc", SamplingParams(max_tokens=50, **ENDLESS))
    next(stream)
    engine.close()
    engine.close()

    with pytest.raises(EngineClosed):
        next(stream)
    with pytest.raises(EngineClosed):
        engine.generate("abc")
    with pytest.raises(EngineClosed):
        engine.stream("abc")


def test_given_a_refused_drafter_then_the_target_is_closed_again(open_engine, monkeypatch, backend):
    from forerun import backends

    opened = []
    original = backends.open_backend

    def spy(*arguments):
        opened.append(original(*arguments))
        monkeypatch.setattr(opened[-1], "close", lambda: opened.append("closed"))
        return opened[0]

    monkeypatch.setattr("forerun.backends.sharing.open_backend", spy)
    with pytest.raises(ModelError, match="no/such/model"):
        open_engine("lm:/no/such/model")

    assert opened[-1] == "closed"


def test_given_speculation_then_it_is_a_plain_comparable_value():
    assert Speculation("lookup") == Speculation("lookup", "auto", "auto", "auto")

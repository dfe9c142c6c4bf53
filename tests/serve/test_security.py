"""Who may come in, with how much, and what they are told when they may not."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from forerun import Engine
from forerun.engine.constraints import Grammar
from forerun.engine.patterns import Pattern
from forerun.errors import OptionError
from forerun.models.tokenizer import Tokenizer
from forerun.serve import gate
from forerun.serve.keys import hash_of, partition_of, read_keys
from forerun.serve.settings import ServeSettings, is_loopback

from .conftest import opened
from .live import MODEL, Live, serving

KEYS = ("a-key-of-the-first-user", "a-key-of-the-second-user")
PROMPT = {"prompt": "abc", "max_tokens": 1}


@pytest.fixture(scope="module")
def guarded(spare_engine: Engine) -> Iterator[Live]:
    hashes = tuple(map(hash_of, KEYS))
    with serving(spare_engine, key_hashes=hashes, max_body_bytes=50_000) as live:
        yield live


ROUTES = [
    ("GET", "/v1/models"), ("GET", "/v1/models/tiny"), ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"),
    ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/any/thing"),
    ("POST", "/v1/responses"),
    ("GET", "/page/about.json"), ("POST", "/page/drafter-failure"), ("POST", "/"),
    ("POST", "//v1/completions"), ("GET", "/health/../metrics"), ("OPTIONS", "/v1/models"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", [None, "wrong", KEYS[0][:-1], KEYS[0] + "x", "ключ"])
def test_given_no_key_that_is_known_then_no_route_answers(
    guarded: Live, method: str, path: str, key: str | None
) -> None:
    sent = {} if key is None else {"authorization": f"Bearer {key}".encode()}

    with guarded.http() as http:
        answer = http.request(method, path, json=PROMPT, headers=sent)

    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_given_a_host_header_of_another_path_then_the_path_still_decides(guarded: Live) -> None:
    with guarded.http(host="x/health?") as http:
        assert http.get("/v1/models").status_code == 401


@pytest.mark.parametrize("key", KEYS)
def test_given_a_known_key_then_the_client_works(guarded: Live, key: str) -> None:
    with guarded.client(key) as client:
        answer = client.completions.create(model=MODEL, prompt="abc", max_tokens=1)

    assert answer.usage is not None
    assert answer.usage.completion_tokens == 1


def test_given_a_wrong_key_then_the_client_raises_its_own_error(guarded: Live) -> None:
    with guarded.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_given_probes_then_health_needs_no_key(guarded: Live) -> None:
    with guarded.http() as http:
        assert [http.get(f"/health{one}").status_code for one in ("", "/live", "/ready")] == [
            200
        ] * 3


def test_given_nobody_allowed_it_then_the_drafter_cannot_be_made_to_fail(
    http: httpx2.Client,
) -> None:
    assert http.post("/page/drafter-failure", json={}).status_code == 403


def test_given_two_keys_then_their_caches_have_different_names() -> None:
    known = tuple(map(hash_of, KEYS))

    names = [partition_of(key, known) for key in KEYS]

    assert None not in names
    assert len(set(names)) == 2
    assert partition_of("other", known) is None
    assert not any(key in str(names) for key in KEYS)


LONG_PROMPT = "what only the first user has asked until now; " * 8


def cached_tokens(server: Live, key: str, prompt: str) -> int:
    with server.http(authorization=f"Bearer {key}") as http:
        answer = http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
    return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_given_a_prompt_that_one_key_sent_then_another_key_cannot_tell(guarded: Live) -> None:
    first, again, other = [
        cached_tokens(guarded, key, LONG_PROMPT) for key in (KEYS[0], KEYS[0], KEYS[1])
    ]

    assert again > 0  # or nothing is kept here, and nothing can be told
    assert (first, other) == (0, 0)


def test_given_one_partition_for_all_keys_then_the_other_key_could_tell(
    guarded: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.setattr(gate, "partition_of", lambda key, known: "everybody")
    prompt = LONG_PROMPT.upper()

    first, other = [cached_tokens(guarded, key, prompt) for key in KEYS]

    assert first == 0
    assert other > 0


@pytest.mark.parametrize(("is_one", "num_compiled"), [(False, [1, 0, 1]), (True, [1, 0, 0])])
def test_given_a_grammar_that_one_key_sent_then_it_is_compiled_again_for_another(
    guarded: Live,
    monkeypatch: pytest.MonkeyPatch,
    is_one: bool,
    num_compiled: list[int],
) -> None:
    pytest.importorskip("llguidance", reason="the extra `serve` is not installed")
    from forerun.engine.grammar import Compiler

    compiled, compile_one = [], Compiler.compile

    def counted(self: Compiler, pattern: Pattern) -> Grammar:
        compiled.append(pattern)
        return compile_one(self, pattern)

    monkeypatch.setattr(Compiler, "compile", counted)
    if is_one:  # the control
        monkeypatch.setattr(gate, "partition_of", lambda key, known: "everybody")
    found = []
    for key in (KEYS[0], KEYS[0], KEYS[1]):
        before = len(compiled)
        with guarded.http(authorization=f"Bearer {key}") as http:
            body = {"prompt": "abc", "guided_regex": f"(only|the)-first-{is_one}"}
            assert http.post("/v1/completions", json=body).status_code == 200
        found.append(len(compiled) - before)

    assert found == num_compiled


def test_given_an_open_address_without_a_key_then_the_settings_refuse() -> None:
    with pytest.raises(OptionError, match="--api-key-file"):
        ServeSettings("m", host="0.0.0.0")
    assert not ServeSettings("m", host="0.0.0.0", key_hashes=(hash_of("k"),)).is_local
    assert [is_loopback(one) for one in ("127.0.0.1", "::1", "[::1]", "localhost")] == [True] * 4
    assert not any(map(is_loopback, ("localhost.evil.com", "0.0.0.0", "::", "10.0.0.1", "")))


@pytest.mark.parametrize("text", ["", "# only words\n\n", "short\n"])
def test_given_a_file_without_a_real_key_then_it_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)

    with pytest.raises(OptionError):
        read_keys(path)
    with pytest.raises(OptionError, match="cannot be read"):
        read_keys(tmp_path / "absent")


def test_given_a_file_of_keys_then_each_is_known(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# two users\n{KEYS[0]}\n\n {KEYS[1]} \n")

    assert read_keys(path) == tuple(map(hash_of, KEYS))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""]
)
def test_given_a_page_that_rebinds_its_name_then_a_server_without_keys_refuses(
    server: Live, host: str
) -> None:
    with server.http(host=host) as http:
        assert http.get("/v1/models").status_code == 403


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000"])
def test_given_a_name_of_this_machine_then_it_is_served(server: Live, host: str) -> None:
    with server.http(host=host) as http:
        assert http.get("/v1/models").status_code == 200


def test_given_another_origin_then_no_header_lets_it_read(server: Live) -> None:
    with server.http(origin="https://evil.example") as http:
        answers = [
            http.get("/v1/models"),
            http.options("/v1/models", headers={"access-control-request-method": "GET"}),
            http.post(
                "/v1/completions",
                content=json.dumps(PROMPT),
                headers={"content-type": "text/plain"},
            ),
        ]

    assert [one.status_code for one in answers] == [200, 405, 400]
    assert not any("access-control" in name for one in answers for name in one.headers)


def chunks_of(num_bytes: int) -> Iterator[bytes]:
    yield b'{"prompt": "'
    for _ in range(num_bytes // 1000):
        yield b"x" * 1000
    yield b'"}'


def test_given_a_body_over_the_limit_then_413_however_it_is_sent(guarded: Live) -> None:
    kind = {"content-type": "application/json", "authorization": f"Bearer {KEYS[0]}"}
    with guarded.http(**kind) as http:
        told = http.post("/tokenize", content=b"x" * 50_001)
        untold = http.post("/tokenize", content=chunks_of(60_000))
        fits = http.post("/tokenize", content=chunks_of(40_000))

    assert [told.status_code, untold.status_code, fits.status_code] == [413, 413, 200]
    assert told.json()["error"]["code"] == "body_too_large"


def test_given_a_body_of_many_megabytes_then_its_client_still_hears_why(server: Live) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    head = (
        f"POST /tokenize HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Content-Length: {9 << 20}\r\n\r\n"
    )

    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + b"x" * (9 << 20))
        answer = connection.recv(1 << 16)

    assert b" 413 " in answer


DEEP = "[" * 100_000
ODD: list[bytes] = [
    b"", b"null", b"[]", b'"x"', b"{", b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt": 1e999}',
    b'{"prompt": "\\ud800"}', b'{"\\ud800": 1}', b'{"prompt": "x", "\\u0000\\ud83d": 1}',
    DEEP.encode(), f'{{"prompt": {DEEP}'.encode(), b'{"prompt": [' + b"[1]," * 20 + b"[1]]}",
    b'{"prompt": "x", "top_k": ' + b"9" * 5000 + b"}",
    b'{"prompt": "x", "top_k": ' + b"9" * 400 + b"}",
    b'{"prompt": "x", "temperature": NaN}', b'{"prompt": "x", "temperature": Infinity}',
    b'{"prompt": [' + b"true," * 20_000 + b"true]}",
    json.dumps({"prompt": "x", "logit_bias": {f"a{at}": 1 for at in range(5000)}}).encode(),
    json.dumps({"prompt": "x", **{f"a{at}": 1 for at in range(5000)}}).encode(),
    json.dumps({"prompt": "x", "a" * 10_000: 1}).encode(),
    json.dumps({"prompt": [], "max_tokens": 1}).encode(),
    json.dumps({"prompt": [""] * 17}).encode(),
    json.dumps({"prompt": [10**9]}).encode(),
    json.dumps({"prompt": [-1]}).encode(),
    json.dumps({"prompt": "y" * 50_000, "max_tokens": 1}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("body", ODD, ids=lambda body: repr(body[:24]))
def test_given_an_odd_body_then_a_short_400_and_the_server_goes_on(
    http: httpx2.Client, body: bytes
) -> None:
    answer = http.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.content) < 1000
    assert http.post("/v1/completions", json=PROMPT).status_code == 200


@pytest.mark.parametrize("text", ["\0", "🦜" * 50, "\u202e\ufeff", "<|end|>", "e\u0301" * 40])
def test_given_odd_text_then_it_is_answered(http: httpx2.Client, text: str) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": text, "echo": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        answer = http.post(path, json={**body, "max_tokens": 3})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "y" * 3_000_000}, "prompt"),
        ("/v1/completions", {"prompt": "y" * 3_000_000}, "prompt"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "y" * 3_000_000}]},
            "messages",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_given_megabytes_of_text_then_they_are_refused_before_they_are_tokenized(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, param: str
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *given, **options: pytest.fail("it was"))

    answer = http.post(path, json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_given_a_template_that_fails_then_its_words_stay_inside(http: httpx2.Client) -> None:
    body: dict[str, Any] = {"messages": [{"role": "assistant", "content": "I begin."}]}

    answer = http.post("/v1/chat/completions", json=body)

    assert answer.status_code == 400
    assert "secret" not in answer.text
    assert answer.json()["error"]["param"] == "messages"


def test_given_a_template_that_never_ends_then_400_with_a_way_out_and_the_server_goes_on(
    chat_model: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "endless"
    shutil.copytree(chat_model, directory)
    grows = "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}"
    template = grows + "{% if messages|length < 2 %}{% break %}{% endif %}{% endfor %}[assistant] "
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    said = {"role": "user", "content": "a"}

    with opened(directory) as engine, serving(engine) as server, server.http() as http:
        bodies = [{"messages": [said] * num, "max_tokens": 1} for num in (2, 1)]
        stopped, served = [http.post("/v1/chat/completions", json=body) for body in bodies]

    error = stopped.json()["error"]
    assert (stopped.status_code, error["param"]) == (400, "messages")
    assert "more than 16000000 characters" in error["message"]
    assert "send fewer" in error["message"]
    assert served.status_code == 200


def test_given_a_request_id_then_it_comes_back_if_it_is_one(http: httpx2.Client) -> None:
    def returned(name: bytes) -> str:
        return http.get("/health", headers={"x-request-id": name}).headers["x-request-id"]

    assert returned(b"job-7.a:b_c") == "job-7.a:b_c"
    assert returned(b"<script>") != "<script>"
    assert returned(b"x" * 65) != "x" * 65


def test_given_the_document_then_it_lists_every_route(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]

    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics"} <= set(paths)
    assert http.get("/docs").status_code == 404

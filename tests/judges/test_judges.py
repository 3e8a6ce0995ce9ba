"""The judges: gold and score in memory, the endpoint's against a real local server that answers well, slowly or wrongly."""

import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r2m_cli.config.schema import JudgeConfig
from r2m_cli.errors import UserError
from r2m_cli.judges.judge import Comparison, gold_judge, score_judge
from r2m_cli.judges.openai_judge import OpenAIJudge
from r2m_cli.judges.verdicts import parse_verdict

PROMPT = ({"role": "user", "content": "say something"},)
Reply = tuple[int, str]  # HTTP status, body


def completion(text: str | None) -> Reply:
    return 200, json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def failure(status: int, message: str) -> Reply:
    return status, json.dumps({"error": {"message": message}})


def longer(text: str) -> Reply:
    a, b = re.search(r"\[Response A\]\n(.*)\n\n\[Response B\]\n(.*)\n\n\[End", text, re.DOTALL).groups()
    return completion("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


class Server(ThreadingHTTPServer):
    """Speaks /v1/chat/completions; `answer` says what to each question."""

    daemon_threads = True
    block_on_close = False  # a slow answer that nobody waits for must not hold the test up

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[str], Reply] = longer
        self.bodies: list[dict] = []
        self.keys: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers["Authorization"])
        status, text = self.server.answer(body["messages"][0]["content"])
        if self.path != "/v1/chat/completions":
            status, text = failure(404, "no such path")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.send_header("Retry-After-Ms", "10")  # keeps the client's pauses short
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # the client has given up

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Callable[..., OpenAIJudge]:
    def build(retries: int = 2, **keys: object) -> OpenAIJudge:
        return OpenAIJudge(JudgeConfig(**{"url": server.url, "timeout": 5.0, **keys}), tmp_path / "cache", retries)

    return build


def compare(*pairs: tuple[str, str]) -> list[Comparison]:
    return [Comparison(PROMPT, first, second) for first, second in pairs]


def line_of(judge: OpenAIJudge, *pairs: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        judge(compare(*(pairs or [("long one", "short")])))
    message = str(caught.value)
    assert "\n" not in message
    assert judge.url in message
    assert judge.config.model in message
    return message


def test_gold_judge_goes_by_the_true_reward() -> None:
    def gold(prompt: object, text: str, finished: bool) -> float:
        return len(text) + finished

    judge = gold_judge(gold)
    unfinished = Comparison(PROMPT, "ab", "ab", finished=(False, True))
    assert judge([*compare(("abc", "a"), ("ab", "cd"), ("a", "ab")), unfinished]) == [1.0, 0.5, 0.0, 0.0]
    assert judge([]) == []


def test_score_judge_scores_every_response_with_its_prompt() -> None:
    other = ({"role": "user", "content": "other"},)

    def score(prompts: list, texts: list[str]) -> list[float]:
        return [len(t) if p == PROMPT else -len(t) for p, t in zip(prompts, texts, strict=True)]

    judge = score_judge(score)
    assert judge([*compare(("abc", "a"), ("ab", "cd")), Comparison(other, "abc", "a")]) == [1.0, 0.5, 0.0]
    assert judge([]) == []


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        *((text, "A") for text in ("A", " a\n", "A.", "[[A]]", "**A**", "Response A", "(a)", "Answer: A", "A\n\nB lacks it")),
        *((text, "B") for text in ("B", "response b.", "The better response is B.", "<think>A?</think>\n\nB", "[[b]] not A")),
        *((text, "tie") for text in ("tie", "Tie.", "a tie", "It's a tie", "[[tie]]")),
        *((text, None) for text in ("", "A or B", "A and B are equal", "A good reply would", "no idea", "<think>A", "bad")),
    ],
)  # fmt: skip
def test_verdicts_are_read_however_they_are_wrapped(answer: str, verdict: str | None) -> None:
    assert parse_verdict(answer) == verdict


def test_both_orders_are_asked(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    judge = make()
    assert judge(compare(("the long one", "short"))) == [1.0]
    asked = [body["messages"][0]["content"] for body in server.bodies]
    assert len(asked) == judge.asked == 2
    assert all("User: say something" in text for text in asked)
    assert sorted(text.index("the long one") < text.index("short") for text in asked) == [False, True]
    assert all(body["temperature"] == 0 and body["model"] == "gpt-4o-mini" for body in server.bodies)
    assert judge(compare(("ab", "cd"))) == [0.5]


def test_position_bias_cancels(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    server.answer = lambda text: completion("A")
    assert make()(compare(("x", "yy"), ("zz", "z"))) == [0.5, 0.5]
    # a bias that is not complete leaves a half of the verdict
    server.answer = lambda text: completion("A" if "[Response A]\nbest" in text else "tie")
    assert make(model="other")(compare(("best", "rest"), ("rest", "best"))) == [0.75, 0.25]


def test_equal_responses_are_a_tie_unasked(make: Callable[..., OpenAIJudge]) -> None:
    judge = make()
    assert judge(compare(("same", "same"))) == [0.5]
    assert judge.asked == 0


def test_order_is_kept_and_requests_overlap(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    lock, under_way, most = threading.Lock(), 0, 0

    def uneven(text: str) -> Reply:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01 * (len(text) % 7))
        with lock:
            under_way -= 1
        return longer(text)

    server.answer = uneven
    pairs = [("x" * (7 * i % 11 + 1), "y" * (i % 5 + 1)) for i in range(24)]
    expected = [0.5 if len(a) == len(b) else float(len(a) > len(b)) for a, b in pairs]
    assert make(workers=4)(compare(*pairs)) == expected
    assert 1 < most <= 4


def test_cached_verdicts_send_nothing(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    pairs = compare(("long one", "short"), ("a", "bb"), ("long one", "short"))
    first = make()
    assert first(pairs) == [1.0, 0.0, 1.0]
    assert (first.asked, first.cached) == (4, 2)  # the third is the first again
    assert first(pairs) == [1.0, 0.0, 1.0]
    second = make()
    assert second(pairs) == [1.0, 0.0, 1.0]
    assert (second.asked, second.cached, len(server.bodies)) == (0, 6, 4)
    assert second(compare(("short", "long one"))) == [0.0]  # the same two questions
    assert len(server.bodies) == 4
    make(model="other")(pairs)  # another model has verdicts of its own
    assert len(server.bodies) == 8


def test_damaged_cache_lines_are_tolerated(server: Server, make: Callable[..., OpenAIJudge], tmp_path: Path) -> None:
    pairs = compare(("long one", "short"), ("a", "bb"))
    make()(pairs)
    path = tmp_path / "cache" / "judge.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_bytes(b'[]\nnull\n{"id": 1}\n{"id": "x", "verdict": []}\n\xff\n' + b"".join(lines)[:-9])
    judge = make()
    assert judge(pairs) == [1.0, 0.0]
    assert judge.asked == 1
    again = make()  # what came after the half-written line is whole
    assert again(pairs) == [1.0, 0.0]
    assert again.asked == 0


def test_server_errors_are_tried_again(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    replies = iter([failure(500, "no"), failure(429, "slower"), *[None] * 2])
    server.answer = lambda text: next(replies) or longer(text)
    judge = make(workers=1)
    assert judge(compare(("long one", "short"))) == [1.0]
    assert judge.asked == 4


def test_lasting_server_error_is_one_line_and_verdicts_stay(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    server.answer = lambda text: failure(503, "model is\nloading") if "bad" in text else longer(text)
    judge = make(workers=1)
    message = line_of(judge, ("long one", "short"), ("bad", "b"), ("never", "sent"))
    assert "HTTP 503 in 3 tries: model is loading" in message
    assert not any("never" in body["messages"][0]["content"] for body in server.bodies)
    assert make()(compare(("long one", "short"))) == [1.0]
    assert judge.asked == len(server.bodies) == 5  # the first comparison was not asked about again


def test_verdicts_under_way_are_kept_when_another_fails(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    def late(text: str) -> Reply:
        if "bad" in text:
            return failure(400, "no")
        time.sleep(0.2)
        return longer(text)

    server.answer = late
    line_of(make(workers=3), ("long one", "short"), ("bad", "b"))
    judge = make()
    assert judge(compare(("long one", "short"))) == [1.0]
    assert judge.asked == 0


@pytest.mark.parametrize(
    ("status", "said", "mend"),
    [(401, "wrong key", "OPENAI_API_KEY"), (403, "not yours", "OPENAI_API_KEY"), (404, "no model", "judge.model")],
)
def test_refusals_fail_at_once(
    server: Server, make: Callable[..., OpenAIJudge], status: int, said: str, mend: str
) -> None:
    server.answer = lambda text: failure(status, said)
    judge = make(workers=1)
    message = line_of(judge)
    assert f"HTTP {status} in one try: {said}" in message
    assert mend in message
    assert judge.asked == 1


def test_slow_server_is_a_timeout(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    server.answer = lambda text: time.sleep(1) or longer(text)
    message = line_of(make(timeout=0.2, retries=1))
    assert "no answer within 0.2 s in 2 tries" in message
    assert "judge.timeout" in message


def test_closed_port_is_a_refused_connection(make: Callable[..., OpenAIJudge]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = line_of(make(url=f"http://127.0.0.1:{port}/v1", retries=1))
    assert "connection refused in 2 tries" in message
    assert "judge.url" in message


def test_garbage_is_asked_once_more_and_is_then_no_verdict(server: Server, make: Callable[..., OpenAIJudge]) -> None:
    server.answer = lambda text: completion("I like both of them")
    judge = make()
    assert math.isnan(judge(compare(("long one", "short")))[0])
    assert (judge.unparsed, judge.asked) == (2, 4)
    replies = iter([completion("hm"), completion(None), completion("A"), completion("B")])
    server.answer = lambda text: next(replies)
    mixed = make(workers=1)  # no verdict was kept, so both orders are asked again; one without counts as a tie
    assert mixed(compare(("long one", "short"))) == [0.25]
    assert mixed.unparsed == 1


@pytest.mark.parametrize("body", ["{not json", "<html>hello</html>", '{"error": "none"}', "[]", '{"choices": []}'])
def test_what_is_no_completion_is_one_line(server: Server, make: Callable[..., OpenAIJudge], body: str) -> None:
    server.answer = lambda text: (200, body)
    judge = make(workers=1)
    message = line_of(judge)
    assert "not a chat completion" in message
    assert "judge.url" in message
    assert judge.asked == 2
    replies = iter([(200, body), completion("A"), completion("B")])
    server.answer = lambda text: next(replies)
    assert judge(compare(("long one", "short"))) == [1.0]


def test_url_and_key_come_from_the_environment(
    server: Server, make: Callable[..., OpenAIJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    make(url=None)(compare(("a", "bb")))
    assert server.keys[-1] == "Bearer none"  # a placeholder: the server is our own
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    make(url=None)(compare(("a", "bbb")))
    assert server.keys[-1] == "Bearer sk-test"


def test_the_official_endpoint_needs_a_key(make: Callable[..., OpenAIJudge]) -> None:
    for url in (None, "https://api.openai.com/v1"):
        with pytest.raises(UserError, match="OPENAI_API_KEY"):
            make(url=url)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "http://", "http://host:port/v1", "ftp://host/v1"])
def test_bad_urls_are_refused(make: Callable[..., OpenAIJudge], url: str) -> None:
    with pytest.raises(UserError, match=r"judge\.url"):
        make(url=url)


def test_missing_client_says_how_to_install_it(
    make: Callable[..., OpenAIJudge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'r2m\[judge\]'"):
        make()


def leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


@pytest.mark.parametrize(("handler", "ending"), [(signal.default_int_handler, KeyboardInterrupt), (leave, SystemExit)])
def test_an_interrupt_ends_it_promptly(
    server: Server, make: Callable[..., OpenAIJudge], handler: Callable, ending: type[BaseException]
) -> None:
    release = threading.Event()

    def slow(text: str) -> Reply:
        if "quick" not in text:
            release.wait(20)
        return longer(text)

    server.answer = slow
    kept = signal.signal(signal.SIGINT, handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    begin = time.monotonic()
    try:
        timer.start()
        with pytest.raises(ending):
            make(timeout=30.0)(compare(("quick", "q"), *((f"a{i}", "bbbb") for i in range(10))))
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, kept)
        release.set()
    assert time.monotonic() - begin < 3
    judge = make()
    assert judge(compare(("quick", "q"))) == [1.0]  # what had come in is kept
    assert judge.asked == 0


def test_a_score_that_is_no_number_gives_no_verdict() -> None:
    scores = {"good": 1.0, "bad": 0.0, "broken": math.nan}
    judge = score_judge(lambda prompts, responses: [scores[response] for response in responses])
    said = judge([Comparison(PROMPT, *pair) for pair in (("good", "bad"), ("good", "broken"), ("broken", "broken"))])
    assert said[0] == 1
    assert all(math.isnan(answer) for answer in said[1:])

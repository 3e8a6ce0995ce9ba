"""A judge behind an OpenAI-compatible endpoint: asked in both orders, every verdict cached on disk."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from r2m_cli.config.schema import JudgeConfig
from r2m_cli.errors import UserError
from r2m_cli.judges.judge import Comparison
from r2m_cli.judges.verdicts import VALUE, append, parse_verdict, question, read

if TYPE_CHECKING:
    import openai

OFFICIAL = "https://api.openai.com/v1"
REACH = 10.0  # seconds to wait for the first answer of the endpoint
RETRIES = 4  # retries after a failed request, with growing pauses
MAX_TOKENS = 16  # enough for "Response B is better.", too few for an essay to cost much


class OpenAIJudge:
    """A `Judge` that shows a language model each comparison twice, with A and B swapped, and returns the mean of the verdicts.

    The preference for the first response is 1, 0.75, 0.5, 0.25 or 0, or NaN if neither order gave a verdict; a model that
    always answers "A" results in 0.5. Two equal responses are a tie without a request. The model must answer immediately:
    one that reasons in its answer first, or that does not accept `temperature` and `max_tokens`, cannot be used.

    Attributes:
        asked: HTTP requests sent, including retries.
        cached: verdicts that needed no request.
        unparsed: questions for which two answers contained no verdict. They are not cached.

    Raises:
        UserError: the openai client is missing, the URL is invalid, or api.openai.com is used without OPENAI_API_KEY; from
            a call: the endpoint cannot be reached, is too slow, refuses the request, or does not speak this protocol.
    """

    def __init__(self, config: JudgeConfig, cache_folder: Path, retries: int = RETRIES):
        """Args: cache_folder: the folder of judge.jsonl, with the verdicts of all runs; created if missing."""
        try:
            import openai  # noqa: F401  (fail now, not after an hour of training)
        except ImportError as error:
            raise UserError(
                "feedback.judge/eval.judge=openai needs the openai client: pip install 'r2m[judge]'"
            ) from error
        self.config, self.retries = config, retries
        self.url = (config.url or os.environ.get("OPENAI_BASE_URL") or OFFICIAL).rstrip("/")
        host = _host(self.url)
        self._key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not self._key and host == urlsplit(OFFICIAL).hostname:
            raise UserError(f"{self.url} needs a key: set OPENAI_API_KEY, or set judge.url to your own server")
        self.asked = 0
        self.cached = 0
        self.unparsed = 0
        self._path = cache_folder / "judge.jsonl"
        self._verdicts = read(self._path)

    def reach(self) -> None:
        """Raises UserError if nothing answers at the URL; any answer will do."""
        import httpx

        try:
            httpx.get(self.url, timeout=min(self.config.timeout, REACH))
        except httpx.TransportError as error:
            raise UserError(
                f"judge.url={self.url}: no answer ({_root(error)}); start the server, or correct judge.url"
            ) from error

    def __call__(self, comparisons: Sequence[Comparison]) -> list[float]:
        """The preference for the first response of each comparison, in order. Every verdict is saved to disk when it arrives.

        When one comparison finally fails, no further ones are sent, and running ones get `judge.timeout` more seconds.
        """
        orders = [
            ()
            if c.first == c.second
            else (question(c.prompt, c.first, c.second), question(c.prompt, c.second, c.first))
            for c in comparisons
        ]
        every = [text for pair in orders for text in pair]
        unknown = deque(text for text in dict.fromkeys(every) if self._id(text) not in self._verdicts)
        self.cached += len(every) - len(unknown)
        if unknown:
            # Coroutines, not threads: Ctrl-C ends their requests and pauses at once, while a thread that waits for an
            # answer would block the process until its timeout.
            asyncio.run(self._ask_all(unknown))
        return [self._preference(pair) for pair in orders]

    def _preference(self, pair: tuple[str, ...]) -> float:
        """The mean over both orders. One order without a verdict counts as a tie; if both have none, the result is NaN."""
        found = [self._verdicts.get(self._id(text)) for text in pair]
        if pair and found == [None, None]:
            return math.nan
        first, second = (VALUE[verdict or "tie"] for verdict in found or ("tie", "tie"))
        return (first + 1 - second) / 2

    def _id(self, text: str) -> str:
        return hashlib.sha256(json.dumps([self.url, self.config.model, text]).encode()).hexdigest()

    async def _ask_all(self, texts: deque[str]) -> None:
        import openai

        async def count(request: object) -> None:
            self.asked += 1

        async with openai.AsyncOpenAI(
            base_url=self.url,
            api_key=self._key or "none",  # the client requires a key, most local servers do not
            timeout=self.config.timeout,
            # The client's own retries: after connection errors, timeouts, 408, 409, 429 and 5xx, with pauses from 0.5 s
            # doubling up to 8 s, or as the server's Retry-After header says.
            max_retries=self.retries,
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]}),
        ) as client:
            number = min(self.config.workers, len(texts))
            workers = [asyncio.create_task(self._work(client, texts)) for _ in range(number)]
            _, waiting = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            if waiting:  # one has failed: wait for the others, whose verdicts are already being paid for
                texts.clear()
                _, late = await asyncio.wait(waiting, timeout=self.config.timeout)
                for worker in late:
                    worker.cancel()
            for result in await asyncio.gather(*workers, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result

    async def _work(self, client: openai.AsyncOpenAI, texts: deque[str]) -> None:
        while texts:
            text = texts.popleft()
            verdict = await self._ask(client, text)
            if verdict is None:
                self.unparsed += 1
            else:
                self._verdicts[self._id(text)] = verdict
                append(self._path, self._id(text), verdict)

    async def _ask(self, client: openai.AsyncOpenAI, text: str) -> str | None:
        """The verdict; None if two answers contained none."""
        for last in (False, True):
            body = await self._send(client, text)
            try:
                answer = json.loads(body)["choices"][0]["message"]["content"]
            except (ValueError, LookupError, TypeError) as error:
                if last:
                    start = " ".join(body.split())[:80]
                    raise self._error(
                        f"the answer is not a chat completion: {start!r}; "
                        "judge.url must be the base URL of an OpenAI-compatible API, which often ends with /v1"
                    ) from error
                continue
            verdict = parse_verdict(str(answer or ""))
            if verdict is not None:
                return verdict
        return None

    async def _send(self, client: openai.AsyncOpenAI, text: str) -> str:
        """The unparsed body of the server's answer to one question."""
        import openai

        try:
            raw = await client.chat.completions.with_raw_response.create(
                model=self.config.model,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            )
        except openai.APIError as error:
            tries = int(error.request.headers.get("x-stainless-retry-count", 0)) + 1
            times = f"in {tries} tries" if tries > 1 else "in one try"
            if isinstance(error, openai.APITimeoutError):
                what = f"no answer within {self.config.timeout:g} s {times}; raise judge.timeout"
                raise self._error(f"{what}, lower judge.workers, or check judge.url") from error
            if isinstance(error, openai.APIStatusError):
                raise self._error(f"HTTP {error.status_code} {times}: {_said(error)}; {_how_to_fix(error)}") from error
            raise self._error(f"{_root(error)} {times}; check judge.url") from error
        return raw.text

    def _error(self, text: str) -> UserError:
        return UserError(f"asked {self.config.model} at {self.url} for a judgement: {text}")


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # accessing the port raises if it is invalid
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UserError(f"judge.url (or OPENAI_BASE_URL) is {url!r}: must look like http://localhost:8000/v1")
    return host


def _said(error: openai.APIStatusError) -> str:
    """The server's own message on one line, cut to 200 characters."""
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return " ".join(str(message or error.message).split())[:200]


def _how_to_fix(error: openai.APIStatusError) -> str:
    if error.status_code in (401, 403):
        return "set OPENAI_API_KEY to a key that this endpoint and model accept"
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return "try later, or lower judge.workers"
    return "check judge.model and judge.url"


def _root(error: BaseException) -> str:
    """The root cause of a connection error, in one line."""
    while inner := (
        error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
    ):
        error = inner
    return "connection refused" if isinstance(error, ConnectionRefusedError) else " ".join(str(error).split())[:200]

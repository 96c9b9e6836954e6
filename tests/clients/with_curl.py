"""How do the cases use `curl`? One process a call, its output read as HTTP and server-sent events by hand."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from typing import Any, Final

from tests.clients.heard import Heard, Refused

_POST: Final = ("-H", "content-type: application/json", "--data-binary", "@-")


class CurlMissing(Exception):
    """There is no `curl` on PATH; these tests need one (Debian: apt-get install curl)."""


class Curl:
    """The `curl` program."""

    name = "curl"

    async def call(
        self,
        url: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        retries: int = 0,
        leave_after: int | None = None,
    ) -> Heard:
        """Chat or completions."""
        route = "chat/completions" if "messages" in body else "completions"
        sent = [part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")]
        options = ["--max-time", str(timeout_s), *(("--retry", str(retries), "--fail") if retries else ()), *sent]
        content = json.dumps(body, ensure_ascii=False).encode()
        if retries:
            return await _retried(f"{url}/v1/{route}", options, content)
        return await _Exchange(leave_after).run(f"{url}/v1/{route}", options, content, bool(body.get("stream")))

    async def models(self, url: str) -> list[str]:
        """By the list route, then each by its own."""
        listed = await get(f"{url}/v1/models")
        return [(await get(f"{url}/v1/models/{one['id']}"))["id"] for one in listed["data"]]

    async def embeddings(self, url: str, model: str) -> None:
        """`POST /v1/embeddings`"""
        await _Exchange().run(f"{url}/v1/embeddings", [], json.dumps({"model": model, "input": "x"}).encode(), False)

    async def responses(self, url: str, model: str) -> None:
        """`POST /v1/responses`"""
        await _Exchange().run(f"{url}/v1/responses", [], json.dumps({"model": model, "input": "x"}).encode(), False)


async def _retried(url: str, options: list[str], content: bytes) -> Heard:
    """The answer after curl's own retries; those before it are not printed."""
    process = await asyncio.create_subprocess_exec(
        curl(), "--silent", "--noproxy", "*", *options, *_POST, url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate(content)
    if process.returncode != 0:
        raise Refused(None, f"exit {process.returncode}", None, "")
    heard = Heard()
    heard.take(json.loads(said))
    return heard


def curl() -> str:
    """Where curl is; raises CurlMissing."""
    found = shutil.which("curl")
    if found is None:
        raise CurlMissing(CurlMissing.__doc__)
    return found


async def version() -> str:
    """Of the curl on this machine."""
    process = await asyncio.create_subprocess_exec(curl(), "--version", stdout=asyncio.subprocess.PIPE)
    return (await process.communicate())[0].decode().split()[1]


async def get(url: str, *options: str) -> Any:
    """The JSON of a GET; Refused for an error status."""
    return json.loads(await _Exchange().answer(url, list(options), None))


async def post(url: str, content: bytes, *options: str) -> Any:
    """The JSON of a POST; Refused for an error status."""
    return json.loads(await _Exchange().answer(url, list(options), content))


class _Exchange:
    """One run of curl."""

    def __init__(self, leave_after: int | None = None) -> None:
        self.heard = Heard()
        self._leave_after = leave_after

    async def run(self, url: str, options: list[str], content: bytes, streams: bool) -> Heard:
        process, status, headers = await _started(url, options, content)
        assert process.stdout is not None
        if status != 200 or not streams:
            self.heard.take(json.loads(await _finished(process, status, headers)))
            return self.heard
        has_ended = False
        async for line in process.stdout:
            if not line.startswith(b"data: "):
                assert line == b"\n", line
                continue
            assert not has_ended, "an event after [DONE]"
            has_ended = line == b"data: [DONE]\n"
            if not has_ended:
                self._event(json.loads(line[6:]))
            if self._leave_after is not None and sum(map(_pieces, self.heard.choices.values())) >= self._leave_after:
                process.kill()
                await process.wait()
                return self.heard
        if await process.wait() != 0:
            raise Refused(None, f"exit {process.returncode}", None, "")
        assert has_ended, "no [DONE]"
        return self.heard

    async def answer(self, url: str, options: list[str], content: bytes | None) -> bytes:
        process, status, headers = await _started(url, options, content)
        return await _finished(process, status, headers)

    def _event(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise Refused(None, f"event {event['error']['code']}", event["error"]["code"], event["error"]["message"])
        self.heard.take(event)


async def _started(
    url: str, options: list[str], content: bytes | None
) -> tuple[asyncio.subprocess.Process, int, dict[str, str]]:
    """A running curl, the status of the answer and its headers; Refused if it ended without one."""
    posts = () if content is None else _POST
    process = await asyncio.create_subprocess_exec(
        curl(), "--silent", "--no-buffer", "--include", "--noproxy", "*", *options, *posts, url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**24,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    if content is not None:
        process.stdin.write(content)
    process.stdin.close()
    status, headers = 100, dict[str, str]()
    while status < 200 or 300 <= status < 400:  # 100 Continue, and redirects if curl was told to follow them
        first = (await process.stdout.readline()).decode()
        if not first:
            raise Refused(None, f"exit {await process.wait()}", None, "")
        status, headers = int(first.split()[1]), {}
        while line := (await process.stdout.readline()).decode().strip():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
    return process, status, headers


async def _finished(process: asyncio.subprocess.Process, status: int, headers: dict[str, str]) -> bytes:
    assert process.stdout is not None
    content = await process.stdout.read()
    if await process.wait() != 0:
        raise Refused(None, f"exit {process.returncode}", None, "")
    if status >= 400:
        error = json.loads(content)["error"]
        raise Refused(status, error["code"], error["code"], error["message"], headers.get("retry-after"))
    return content


def _pieces(choice: Any) -> int:
    return len(choice.pieces)

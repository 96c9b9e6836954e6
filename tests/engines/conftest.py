"""Which real engines do the tests share? Started when a test first asks, stopped when the last one is done.

`vllm_pair` lives for the session. What a test wants beside it (float32, a server to kill) lives only while needed:
two cores carry few servers.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import pytest

from agentserve.errors import Unavailable
from tests.engines.servers import (
    OUTPUT,
    EngineServer,
    engines_python,
    llamacpp,
    make_gguf,
    make_model,
    running,
    transformers_serve,
    vllm,
)
from tests.integration.otlp_receiver import Receiver

Pair = tuple[EngineServer, EngineServer]


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    """The loop on which servers are started and stopped; tests have their own."""
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="session")
def tiny_model(runner: asyncio.Runner) -> Path:
    """The folder of the tiny model, made anew."""
    folder = OUTPUT / "model"
    try:
        runner.run(make_model(engines_python(), folder))
    except Unavailable as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
    return folder


@pytest.fixture(scope="session")
def spans() -> Iterator[Receiver]:
    """Gets the spans of every vLLM server here; point the gateway at its `url` too."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def vllm_pair(runner: asyncio.Runner, tiny_model: Path, spans: Receiver) -> Iterator[Pair]:
    """Two bfloat16 vLLM servers that can hand KV to each other. Do not kill them: others use them after you."""
    with _up(runner, running(*(_with_nixl(tiny_model, spans) for _ in range(2)))) as servers:
        yield servers


@pytest.fixture(scope="module")
def float32_pair(runner: asyncio.Runner, tiny_model: Path, spans: Receiver) -> Iterator[Pair]:
    """The same pair in float32, for one module's tests."""
    with _up(runner, running(*(_with_nixl(tiny_model, spans, dtype="float32") for _ in range(2)))) as servers:
        yield servers


@pytest.fixture
def doomed_vllm(runner: asyncio.Runner, tiny_model: Path, spans: Receiver) -> Iterator[EngineServer]:
    """One more server like those of `vllm_pair`, for one test, which may kill it."""
    with _up(runner, running(_with_nixl(tiny_model, spans))) as (server,):
        yield server


@pytest.fixture(scope="module")
def transformers_server(runner: asyncio.Runner, tiny_model: Path) -> Iterator[EngineServer]:
    """An OpenAI-compatible server of another make: no token ids, no priority, no metrics."""
    with _up(runner, running(transformers_serve(tiny_model))) as (server,):
        yield server


@pytest.fixture(scope="session")
def tiny_gguf(runner: asyncio.Runner, tiny_model: Path) -> Path:
    """The tiny model in the one file that llama.cpp reads."""
    file = OUTPUT / "model.gguf"
    try:
        runner.run(make_gguf(engines_python(), tiny_model, file))
    except Unavailable as error:
        pytest.fail(str(error), pytrace=False)
    return file


@pytest.fixture(scope="module")
def llamacpp_pair(runner: asyncio.Runner, tiny_gguf: Path) -> Iterator[Pair]:
    """Two servers of llama.cpp: they take and give token ids, and that is all they share."""
    with _up(runner, running(llamacpp(tiny_gguf), llamacpp(tiny_gguf))) as servers:
        yield servers


@pytest.fixture
def one_slot(runner: asyncio.Runner, tiny_gguf: Path) -> Iterator[EngineServer]:
    """A server of llama.cpp that serves one call at a time."""
    with _up(runner, running(llamacpp(tiny_gguf, slots=1))) as (server,):
        yield server


def _with_nixl(model: Path, spans: Receiver, dtype: str = "bfloat16") -> EngineServer:
    return vllm(model, dtype=dtype, nixl=True, otlp_endpoint=f"{spans.url}/v1/traces")


@contextmanager
def _up(
    runner: asyncio.Runner, servers: AbstractAsyncContextManager[tuple[EngineServer, ...]]
) -> Iterator[tuple[EngineServer, ...]]:
    try:
        started = runner.run(servers.__aenter__())
    except Unavailable as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield started
    finally:
        runner.run(servers.__aexit__(None, None, None))

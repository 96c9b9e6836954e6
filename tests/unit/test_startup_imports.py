"""Commands start quickly because they load only what they need: counted in modules, since times differ by machine."""

import subprocess
import sys

import pytest

HELP = (
    "httpx",
    "numpy",
    "pydantic",
    "langgraph",
    "redis",
    "starlette",
    "uvicorn",
    "opentelemetry",
    "prometheus_client",
)
GATEWAY = ("langgraph", "langchain_core", "matplotlib", "pyarrow", "scipy", "jinja2", "grpc", "openai", "amqtt")


@pytest.mark.parametrize(("module", "spared"), [("agentserve.cli", HELP), ("agentserve.gateway.serve", GATEWAY)])
def test_what_is_not_needed_to_start_is_not_loaded(module: str, spared: tuple[str, ...]) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert module in told
    assert [name for name in spared if name in told] == []

"""How does KV get from the prefill instance to the decode instance? vLLM's `kv_transfer_params`, over HTTP.

The prefill side pins a finished request's KV under a handle and returns where to find it; the decode side asks that
address what the handle holds, lets its engine model take the time of the transfer, and tells the other side to free it.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from agentserve.emulator.sequence import Lease, RemoteKv
from agentserve.errors import BadInput, EngineFailed

if TYPE_CHECKING:
    from httpx import AsyncClient

TIMEOUT_S: Final = 5.0
"""After this long a prefill instance counts as dead: what vLLM's connector takes."""


@dataclass(frozen=True, slots=True)
class Handle:
    """Where a request's KV is: the engine that holds it and the request's id there."""

    url: str
    request_id: str


def handle_from(params: Mapping[str, Any]) -> Handle | None:
    """The handle in a client's `kv_transfer_params`; None if there is none. Raises BadInput for a broken one."""
    if not params.get("do_remote_prefill"):
        return None
    host, port, request_id = params.get("remote_host"), params.get("remote_port"), params.get("remote_request_id")
    if not isinstance(host, str) or type(port) is not int or not 0 < port < 65536 or not isinstance(request_id, str):
        raise BadInput("kv_transfer_params: do_remote_prefill needs remote_host, remote_port and remote_request_id")
    if any(character in host for character in "/?#@ "):
        raise BadInput("kv_transfer_params.remote_host: a host name or an address is required")
    return Handle(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", request_id)


def params_for(lease: Lease, request_id: str, engine_id: str, address: tuple[str, int]) -> dict[str, Any]:
    """What the prefill side answers: pass it to the decode side as it is."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": lease.blocks,
        "remote_engine_id": engine_id,
        "remote_request_id": request_id,
        "remote_host": address[0],
        "remote_port": address[1],
        "tp_size": 1,
    }


class Peers:
    """The other engines, as HTTP clients see them. The client is made on first use, since many engines never do."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None
        self._releases: set[asyncio.Task[None]] = set()

    async def claim(self, handle: Handle) -> RemoteKv:
        """What the handle holds. Raises EngineFailed if its engine is gone or the lease has ended."""
        import httpx  # the import takes as long as all others together

        try:
            response = await self._http().post(f"{handle.url}/emulator/kv/{quote(handle.request_id, safe='')}")
            response.raise_for_status()
            held = response.json()
            return RemoteKv(tokens=int(held["tokens"]), link_bytes_per_s=float(held["link_bytes_per_s"]))
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise EngineFailed(f"KV transfer from {handle.url} failed: {type(error).__name__}") from None

    def release_soon(self, handle: Handle) -> None:
        """Tell the handle's engine to free it, in the background; a lost message is made good by the lease's end."""
        task = asyncio.get_running_loop().create_task(self._release(handle))
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def close(self) -> None:
        """Drop what is under way."""
        for task in list(self._releases):
            task.cancel()
        if self._client is not None:
            await self._client.aclose()

    async def _release(self, handle: Handle) -> None:
        import httpx

        try:
            await self._http().delete(f"{handle.url}/emulator/kv/{quote(handle.request_id, safe='')}")
        except httpx.HTTPError:
            return

    def _http(self) -> "AsyncClient":
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False)
        return self._client

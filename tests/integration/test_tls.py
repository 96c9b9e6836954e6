"""TLS of gateway, Redis and broker: certificates and names are checked, and a wrong one is no connection."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme

from agentserve.errors import BadInput, Unavailable
from agentserve.gateway.serve import run_gateway
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.settings import Settings
from agentserve.telemetry.bus import Bus
from agentserve.tracker.redis import RedisStore
from tests.integration.gateway_parts import until
from tests.integration.worker_parts import BROKERS, HOST, broker_process


class Certificates:
    """Of 127.0.0.1, signed by an authority of the test, and that of another authority."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = trustme.CA(), trustme.CA()
        self.own, self.foreign = folder / "ca.pem", folder / "other.pem"
        ours.cert_pem.write_to_path(str(self.own))
        theirs.cert_pem.write_to_path(str(self.foreign))
        self._made = ours.issue_cert("127.0.0.1")
        self._elsewhere = ours.issue_cert("elsewhere.example")
        self.chain, self.key = folder / "chain.pem", folder / "key.pem"
        self._made.private_key_pem.write_to_path(str(self.key))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in self._made.cert_chain_pems))

    def context(self, *, named: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        (self._made if named else self._elsewhere).configure_cert(context)
        return context


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@asynccontextmanager
async def tls_before(port: int, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A TLS server in front of a plain one on this machine; its port."""
    pumps: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while content := await reader.read(65_536):
                writer.write(content)
                await writer.drain()
        except (OSError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, port)
        for work in (pump(reader, inner_writer), pump(inner_reader, writer)):
            pumps.add(asyncio.create_task(work))

    server = await asyncio.start_server(serve, HOST, 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def test_the_gateway_speaks_https_with_the_certificate_given(certificates: Certificates) -> None:
    async with RedisServer() as redis:
        ready = asyncio.get_running_loop().create_future()
        settings = Settings(
            port=free_port(),
            redis_url=redis.url,
            mqtt_url=None,
            tls_cert_file=certificates.chain,
            tls_key_file=certificates.key,
        )
        serving = asyncio.create_task(run_gateway(settings, on_ready=ready.set_result, handle_signals=False))
        url = await asyncio.wait_for(ready, 30)
        assert url == f"https://127.0.0.1:{settings.port}"
        trusting = ssl.create_default_context(cafile=certificates.own)
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200
        suspicious = ssl.create_default_context(cafile=certificates.foreign)
        async with httpx.AsyncClient(verify=suspicious, trust_env=False) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get(f"{url}/healthz")
        async with httpx.AsyncClient(trust_env=False) as client:
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{settings.port}/healthz")
        serving.cancel()
        await asyncio.wait({serving})


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tls_cert_file and tls_key_file"):
        Settings(tls_cert_file=tmp_path / "cert.pem")


async def test_redis_over_tls_is_checked_by_authority_and_name(certificates: Certificates) -> None:
    async with RedisServer(port=0) as redis:
        port = int(redis.url.rsplit(":", 1)[1].split("/")[0])
        async with tls_before(port, certificates.context()) as tls:
            settings = Settings(redis_url=f"rediss://127.0.0.1:{tls}/0", redis_ca_file=certificates.own)
            store = await RedisStore.connect(settings)
            await store.ping()
            await store.close()
            for ca_file in (certificates.foreign, None):
                with pytest.raises(Unavailable, match="Redis"):
                    await RedisStore.connect(settings.model_copy(update={"redis_ca_file": ca_file}))
        async with tls_before(port, certificates.context(named=False)) as tls:
            wrong = settings.model_copy(update={"redis_url": f"rediss://127.0.0.1:{tls}/0"})
            with pytest.raises(Unavailable, match="Redis"):
                await RedisStore.connect(wrong)
    with pytest.raises(BadInput, match="AGENTSERVE_REDIS_CA_FILE"):
        await RedisStore.connect(settings.model_copy(update={"redis_ca_file": Path("/nowhere.pem")}))


@asynccontextmanager
async def connecting(bus: Bus) -> AsyncIterator[Bus]:
    task = asyncio.create_task(bus.run())
    try:
        yield bus
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.mark.parametrize("kind", BROKERS)
async def test_the_broker_over_tls_is_checked_by_authority_and_name(certificates: Certificates, kind: str) -> None:
    port = free_port()

    def failed(bus: Bus) -> Callable[[], bool]:
        return lambda: "certificate verify failed" in (bus.problem or "").lower()

    async with broker_process(kind, port):
        async with tls_before(port, certificates.context()) as tls:
            url = f"mqtts://127.0.0.1:{tls}"
            async with connecting(Bus(url, ca_file=certificates.own)) as bus:
                await until(lambda: bus.connected)
            for ca_file in (certificates.foreign, None):
                async with connecting(Bus(url, ca_file=ca_file)) as bus:
                    await until(failed(bus))
                    assert not bus.connected
        async with (
            tls_before(port, certificates.context(named=False)) as tls,
            connecting(Bus(f"mqtts://127.0.0.1:{tls}", ca_file=certificates.own)) as bus,
        ):
            await until(failed(bus))
    with pytest.raises(BadInput, match="AGENTSERVE_MQTT_CA_FILE"):
        Bus("mqtts://127.0.0.1:1", ca_file=Path("/nowhere.pem"))

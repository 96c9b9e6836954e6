"""`agentserve gateway`, `worker`, `emulator` and `broker`: each part of a cluster as a process of its own."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentserve.errors import BadInput
from scheduler.events import Role

if TYPE_CHECKING:
    from agentserve.workers.config import EngineConfig
    from scheduler.profiles import ProfileBook

GpuFlag = Annotated[str, typer.Option(help="GPU type, as the profiles name it: a100-80g, h100, h200, or your own")]
ProfilesFlag = Annotated[
    list[Path] | None,
    typer.Option("--profiles", metavar="FILE", help="GPU profile that `agentserve profile` wrote; repeat for more"),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (gateway, worker, emulator, broker):
        app.command()(command)


def gateway(
    host: Annotated[str | None, typer.Option(help="Address to listen on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [default: 8080]")] = None,
    policy: Annotated[str | None, typer.Option(help="Scheduling policy [default: agentserve]")] = None,
    redis: Annotated[str | None, typer.Option(help="Redis URL")] = None,
    mqtt: Annotated[str | None, typer.Option(help="MQTT URL; empty for none")] = None,
    engine: Annotated[
        list[str] | None, typer.Option(metavar="URL,GPU[,MODEL]", help="An engine without a worker; repeat for more")
    ] = None,
    event_log: Annotated[Path | None, typer.Option(help="Record scheduler events and decisions here")] = None,
    profiles: ProfilesFlag = None,
    kv_moves: Annotated[
        bool | None, typer.Option("--kv-moves/--no-kv-moves", help="Move calls by their KV where that costs less")
    ] = None,
) -> None:
    """Serve the OpenAI-compatible API; settings come from AGENTSERVE_* variables, flags win."""
    import uvloop

    from agentserve.gateway.serve import run_gateway
    from agentserve.profile_files import read_profiles
    from agentserve.settings import load_settings

    settings = load_settings(
        host=host,
        port=port,
        policy=policy,
        redis_url=redis,
        mqtt_url=mqtt,
        event_log=event_log,
        profiles=profiles or None,
        kv_moves=kv_moves,
    )
    book = read_profiles(settings.profiles)
    key = settings.engine_api_key.get_secret_value() if settings.engine_api_key else None
    static = [replace(_static_engine(text, book), api_key=key) for text in engine or ()]
    uvloop.run(run_gateway(settings, static_engines=static))


def _static_engine(text: str, profiles: "ProfileBook") -> "EngineConfig":
    from agentserve.workers.config import EngineConfig

    parts = text.split(",")
    if len(parts) not in (2, 3):
        raise BadInput(f"--engine {text!r}: give URL,GPU or URL,GPU,MODEL")
    model = parts[2] if len(parts) == 3 else None
    return EngineConfig(engine_url=parts[0], gpu=parts[1], model=model, profiles=profiles)


def worker(
    engine: Annotated[str, typer.Option(help="The engine's base URL")],
    gpu: GpuFlag,
    model: Annotated[str | None, typer.Option(help="Served model [default: the engine's only one]")] = None,
    id: Annotated[str | None, typer.Option(help="Instance id [default: made of GPU and address]")] = None,  # noqa: A002  # the flag's name
    engine_kind: Annotated[
        str, typer.Option(help="vllm, sglang, trtllm, llamacpp, emulator, openai; auto finds out")
    ] = "auto",
    role: Annotated[
        Role | None, typer.Option(help="Phases it may serve [default: what the engine is set up for]")
    ] = None,
    speed: Annotated[float, typer.Option(help="Faster than the GPU's profile by this factor")] = 1.0,
    kv_capacity_tokens: Annotated[
        int | None, typer.Option(help="KV cache size [default: asked or from profile]")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Most sequences at once [default: asked, or 256]")] = None,
    max_batched_tokens: Annotated[
        int | None, typer.Option(help="Token budget of one iteration [default: asked, or 8192]")
    ] = None,
    block_tokens: Annotated[int | None, typer.Option(help="KV block size [default: asked or from profile]")] = None,
    kv_bytes_per_token: Annotated[int | None, typer.Option(help="KV size per token [default: profile]")] = None,
    kv_link_bytes_per_s: Annotated[float | None, typer.Option(help="Bandwidth of its KV link")] = None,
    kv_transfer: Annotated[
        bool | None, typer.Option("--kv-transfer/--no-kv-transfer", help="It can hand over KV [default: found out]")
    ] = None,
    kv_group: Annotated[
        str | None, typer.Option(help="Workers of one group may hand KV to each other [default: what engines report]")
    ] = None,
    mqtt: Annotated[str | None, typer.Option(help="MQTT URL [default: $AGENTSERVE_MQTT_URL]")] = None,
    cluster: Annotated[str | None, typer.Option(help="Cluster name")] = None,
    profiles: ProfilesFlag = None,
) -> None:
    """Report for one engine: announce it, send its state at 5 Hz, drain it on SIGTERM.

    An engine that wants a key gets the one in AGENTSERVE_ENGINE_API_KEY.
    """
    from agentserve.profile_files import read_profiles
    from agentserve.settings import load_settings
    from agentserve.workers.agent import run_worker
    from agentserve.workers.config import WorkerConfig

    settings = load_settings(mqtt_url=mqtt, cluster=cluster, profiles=profiles or None)
    if not settings.mqtt_url:
        raise BadInput("a worker needs a broker: give --mqtt or AGENTSERVE_MQTT_URL")
    config = WorkerConfig(
        engine_url=engine,
        gpu=gpu,
        model=model,
        engine=engine_kind,
        role=role,
        speed=speed,
        kv_capacity_tokens=kv_capacity_tokens,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        block_tokens=block_tokens,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_link_bytes_per_s=kv_link_bytes_per_s,
        kv_transfer=kv_transfer,
        kv_group=kv_group,
        api_key=os.environ.get("AGENTSERVE_ENGINE_API_KEY"),
        profiles=read_profiles(settings.profiles),
        worker_id=id,
        mqtt_url=settings.mqtt_url,
        mqtt_ca_file=settings.mqtt_ca_file,
        key=settings.worker_key.get_secret_value() if settings.worker_key else None,
        cluster=settings.cluster,
    )
    asyncio.run(run_worker(config))


def emulator(
    gpu: GpuFlag = "h100",
    model: Annotated[str, typer.Option(help="Model of the profile")] = "llama-3.1-8b",
    host: Annotated[str, typer.Option(help="Address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one")] = 8000,
    speed: Annotated[float, typer.Option(help="Run this many times faster than the GPU")] = 1.0,
    role: Annotated[Role, typer.Option(help="Phases it serves")] = Role.MIXED,
    seed: Annotated[int, typer.Option(help="Seed of generated replies")] = 0,
    script: Annotated[Path | None, typer.Option(help="Recorded replies (JSON lines)")] = None,
    scheduling_policy: Annotated[str, typer.Option(help="Order of waiting calls")] = "fcfs",
    max_num_seqs: Annotated[int, typer.Option(help="Most sequences at once")] = 256,
    max_batched_tokens: Annotated[int, typer.Option(help="Token budget of one iteration")] = 8192,
    kv_capacity_tokens: Annotated[int | None, typer.Option(help="KV cache size [default: the profile's]")] = None,
    kv_link_bytes_per_s: Annotated[float | None, typer.Option(help="Bandwidth of its KV link")] = None,
    stream_interval: Annotated[int, typer.Option(help="Tokens per streamed chunk")] = 1,
    chaos: Annotated[bool, typer.Option("--chaos", help="Open the endpoint that slows the engine, for tests")] = False,
    profiles: ProfilesFlag = None,
) -> None:
    """Emulate a vLLM server on a GPU that is not here."""
    from agentserve.emulator.config import EmulatorConfig
    from agentserve.emulator.server import serve
    from agentserve.profile_files import read_profiles
    from agentserve.settings import load_settings

    config = EmulatorConfig(
        gpu=gpu,
        model=model,
        host=host,
        port=port,
        speed=speed,
        role=role.value,
        seed=seed,
        script=script,
        scheduling_policy=scheduling_policy,  # type: ignore[arg-type]  # EmulatorConfig refuses other words
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        kv_link_bytes_per_s=kv_link_bytes_per_s,
        stream_interval=stream_interval,
        chaos=chaos,
        profiles=read_profiles(load_settings(profiles=profiles or None).profiles),
    )
    asyncio.run(serve(config))


def broker(
    port: Annotated[int, typer.Option(help="Port on loopback")] = 1883,
    username: Annotated[str | None, typer.Option(help="Ask clients for this name and a password")] = None,
) -> None:
    """Run the embedded MQTT broker; with --username the password is the one in AGENTSERVE_BROKER_PASSWORD."""
    from agentserve.local.broker import BrokerConfig, run_broker

    password = os.environ.get("AGENTSERVE_BROKER_PASSWORD")
    asyncio.run(run_broker(BrokerConfig(port=port, username=username, password=password if username else None)))

"""Every setting of the gateway, read once from `AGENTSERVE_*` variables; a bad value names its variable."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from agentserve.errors import BadInput
from scheduler.events import Mode


class Settings(BaseSettings):
    """Defaults are for one machine: everything binds loopback and nothing sensitive is logged."""

    model_config = SettingsConfigDict(env_prefix="AGENTSERVE_", extra="ignore", frozen=True)

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=1, le=65535)
    """Port to listen on."""
    tenants_file: Path | None = None
    """Tenants and hashes of their API keys (TOML, see `agentserve keys`); unset: anybody may call, on loopback only."""
    allow_anonymous: bool = False
    """Let everybody call without a key also on an address that other machines reach: something else must guard it."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """`redis://`, `rediss://` or `unix://` URL of Redis 7+ or Valkey 8+."""
    mqtt_url: str | None = "mqtt://127.0.0.1:1883"
    """`mqtt://user:password@host:port`; empty: no broker, static engines only."""
    cluster: str = Field("default", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    """Names the topics and keys, so that clusters can share a broker and a Redis."""
    policy: str = "agentserve"
    """Scheduling policy: a file of `scheduler/policies/`, by its name."""
    mode: Mode = Mode.SPLIT
    """What the scheduler may do until somebody switches the mode of the cluster: observe, route, migrate, split."""
    observed_policy: str = "least_requests"
    """Places the calls in mode observe: the policy that is most like the balancer that was there before."""
    otlp_endpoint: str | None = None
    """OTLP endpoint, `http(s)://` or `grpc(s)://`; unset: no spans are exported."""
    trace_share: float = Field(1.0, ge=0, le=1)
    """Share of the runs that end in time whose spans are exported; late and failed runs always are."""
    profiles: Annotated[tuple[Path, ...], NoDecode] = ()
    """Files of the user's own GPU profiles; in the variable with `:` between them (`;` on Windows)."""
    engine_networks: str = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"
    """Networks in which engines may be that workers announce, with commas between them; `--engine` may name any other.
    This machine and private networks, without link-local addresses, where clouds keep credentials."""
    announce_secret: SecretStr | None = None
    """Only workers that sign with the key that `agentserve keys worker` makes of this are believed; unset: all are."""
    worker_key: SecretStr | None = None
    """With what a worker signs its messages; a file of its own for each worker."""
    tls_cert_file: Path | None = None
    """The gateway's certificate chain (PEM); with `tls_key_file` it speaks HTTPS only."""
    tls_key_file: Path | None = None
    """And its private key."""
    redis_ca_file: Path | None = None
    """Certificates (PEM) that sign a `rediss://` server's; unset: those of the system. It is checked in any case."""
    mqtt_ca_file: Path | None = None
    """The same for `mqtts://`, also of workers."""
    engine_api_key: SecretStr | None = None
    """Bearer token that the engines ask for; workers and `engine probe` read the same variable."""
    kv_moves: bool = False
    """Move a running call by its KV cache, where both engines share a transfer and that costs less than a replay."""
    event_log: Path | None = None
    """Record every scheduler event and decision here (JSON lines), for replay."""

    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    """A longer body is refused with 413."""
    max_prompt_tokens: int = Field(1_000_000, ge=1)
    """A longer prompt, as estimated here, is refused with 413."""
    max_live_calls: int = Field(4096, ge=1)
    """While so many calls are in flight, further ones are refused with 429."""
    max_live_pages: int = Field(16, ge=0)
    """Streams for the page at `/ui` at a time; 0: no page is fed."""
    max_connections: int = Field(4096, ge=1)
    """Open connections of clients; further ones are closed at once."""
    head_timeout_s: float = Field(15.0, gt=0)
    """How long a client may take to send the head of a request."""
    default_slo_s: float | None = Field(None, gt=0)
    """SLO of runs that are made without one; unset: they have none."""
    max_slo_s: float = Field(86_400.0, gt=0)
    """A longer SLO is refused with 400."""
    call_timeout_s: float = Field(600.0, gt=0)
    """How long a call may take in all, waits included; then it ends with 504."""
    connect_timeout_s: float = Field(1.0, gt=0)
    """How long an engine may take to accept a connection, or to answer a health check."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """A stream silent for this long counts as broken."""
    lost_after_s: float = Field(1.5, gt=0)
    """A worker that has not reported for this long, while the broker is up, is lost."""
    drain_timeout_s: float = Field(10.0, ge=0)
    """How long a stopping gateway lets calls in flight end."""

    run_ttl_s: int = Field(86_400, ge=1)
    """How long a run is kept after its last change."""
    max_run_events: int = Field(10_000, ge=10)
    """Journal events kept of a run, about; the oldest go first."""
    max_run_steps: int = Field(2_000, ge=1)
    """A run that would have more steps is refused with 413."""
    max_listed_runs: int = Field(10_000, ge=1)
    """Runs remembered in the index; older ones fall out of lists first."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Level of the HTTP server's log."""

    @field_validator("engine_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for text in filter(None, value.split(",")):
            ipaddress.ip_network(text.strip())
        return value

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("give tls_cert_file and tls_key_file, or none of them")
        return self

    @field_validator("profiles", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def load_settings(**overrides: object) -> Settings:
    """Read the environment, with `overrides` (from flags) winning over it; None in an override means not given.

    What the environment lacks is read from the folder that AGENTSERVE_SECRETS_DIR names: a file per setting, named as
    its variable in small letters (`agentserve_mqtt_url`). Raises BadInput naming the variable and what it may be.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    secrets_dir = os.environ.get("AGENTSERVE_SECRETS_DIR") or None
    if secrets_dir is not None and not Path(secrets_dir).is_dir():
        raise BadInput(f"bad setting: AGENTSERVE_SECRETS_DIR={secrets_dir!r}: no such folder")
    try:
        return Settings(_secrets_dir=secrets_dir, **given)  # type: ignore[arg-type, call-arg]  # pydantic takes and checks both
    except ValidationError as error:
        problems = "; ".join(_told(details) for details in error.errors())
        raise BadInput(f"bad setting: {problems}") from None


def _told(details: Any) -> str:
    """What is wrong, without the values of a whole (secrets among them)."""
    if not details["loc"]:
        return str(details["msg"]).removeprefix("Value error, ")
    return f"AGENTSERVE_{str(details['loc'][0]).upper()}={details.get('input')!r}: {details['msg']}"

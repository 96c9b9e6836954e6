"""How do a tenant's names come in and go out? Inside they carry its scope, outside they are as the tenant gave them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentserve.gateway.identity import CallIdentity
from agentserve.tenants.tenant import Tenant


def inside(identity: CallIdentity, tenant: Tenant) -> CallIdentity:
    """What a call says of itself, with the names that only this tenant can use."""
    if not tenant.scope:
        return identity
    return replace(
        identity,
        run_id=_in(tenant, identity.run_id),
        workflow=_in(tenant, identity.workflow),
        request_id=_in(tenant, identity.request_id),
        session_id=_in(tenant, identity.session_id),
    )


def outside(plain: Any, tenant: Tenant) -> Any:
    """Plain JSON data as this tenant knows it; the very same for an admin."""
    return plain if not tenant.scope else _stripped(plain, tenant)


def _stripped(value: Any, tenant: Tenant) -> Any:
    if isinstance(value, str):
        return tenant.outside(value)
    if isinstance(value, Mapping):
        return {_stripped(key, tenant): _stripped(one, tenant) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_stripped(one, tenant) for one in value]
    return value


def _in(tenant: Tenant, name: str | None) -> str | None:
    return None if name is None else tenant.inside(name)

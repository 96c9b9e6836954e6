"""What is a tenant? A name, a weight, limits, and how its names are kept apart from those of others.

Names of runs, requests, sessions and workflows carry their tenant's scope inside of the gateway (`research:run-1`) and
lose it on the way out. So a tenant cannot even name what belongs to another, and nothing is looked up and then refused.
"""

from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9_-]{0,31}$"
"""Without a colon, so that the first one in a scoped name ends the scope."""
TenantName = Annotated[str, Field(pattern=NAME_PATTERN)]


class Tenant(BaseModel):
    """A tenant's table in the file; what is left out is not limited. Limits hold for each gateway process."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: TenantName
    weight: float = Field(default=1.0, ge=0.01, le=100)
    """Its share of the service while calls of several tenants wait, against the others' weights."""
    admin: bool = False
    """It sees everything, names runs of other tenants in full (`research:run-1`), and switches the mode."""
    rate_per_s: float | None = Field(default=None, gt=0, le=1e6)
    """Calls per second."""
    burst: int | None = Field(default=None, ge=1, le=1_000_000)
    """Calls that may come at once; about a second's worth if left out."""
    concurrent_calls: int | None = Field(default=None, ge=1, le=1_000_000)
    """Calls in flight."""
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**12)
    """Prompt and output tokens; a minute's worth may come at once."""
    share_prefixes: bool = False
    """Let its prompts meet cached prefixes of other tenants that share too; how fast an answer begins then tells what
    others asked."""

    @property
    def scope(self) -> str:
        """What the names of its runs begin with inside of the gateway; nothing for an admin, who names all of them."""
        return "" if self.admin else f"{self.name}:"

    def inside(self, name: str) -> str:
        """A name as the gateway keeps it."""
        return self.scope + name

    def outside(self, name: str) -> str:
        """A name as the tenant gave it."""
        return name.removeprefix(self.scope)

    def cache_salt(self, given: object) -> str | None:
        """What keeps its cached prefixes apart on engines, with the salt that the client gave; None: nothing does."""
        own = given if isinstance(given, str) and given else None
        if self.share_prefixes:
            return None if own is None else f"shared/{own}"
        return f"tenant/{self.name}" if own is None else f"tenant/{self.name}/{own}"


NOBODY: Final = Tenant(name="anonymous", admin=True)
"""Who calls while authentication is off: everybody, with all rights."""

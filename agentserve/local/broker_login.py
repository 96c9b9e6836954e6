"""Who may log in to the embedded broker? One user, told to it when it starts; amqtt loads this plugin by name."""

import hmac
from dataclasses import dataclass, field

from amqtt.plugins.base import BaseAuthPlugin  # type: ignore[import-untyped]  # it ships no types
from amqtt.session import Session  # type: ignore[import-untyped]  # it ships no types


class OneLogin(BaseAuthPlugin):  # type: ignore[misc]  # untyped for want of types in amqtt
    """Lets in whoever gives the configured name and password."""

    async def authenticate(self, *, session: Session) -> bool:
        """Compare in constant time, so that the answer's delay tells nothing."""
        expected = self.config
        if not isinstance(expected, OneLogin.Config):
            return False
        given = (session.username or "", session.password or "")
        return all(
            hmac.compare_digest(a.encode(), b.encode())
            for a, b in zip(given, (expected.username, expected.password), strict=True)
        )

    @dataclass
    class Config:
        """What amqtt hands the plugin."""

        username: str
        password: str = field(repr=False)

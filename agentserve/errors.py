"""What can go wrong at the edges, as a tree; every message names what and where.

The CLI prints the message and exits with `exit_code`; the gateway answers with `status` and OpenAI's error shape.
"""


class AgentServeError(Exception):
    """Root of every error that a user of agentserve can meet."""

    exit_code = 1
    status = 500
    code = "internal_error"

    @property
    def record(self) -> str:
        """The message as logs, traces and the store keep it: without an engine's words, which may quote a prompt."""
        return str(self)


class BadInput(AgentServeError):
    """What the user gave cannot be used; nothing was changed."""

    exit_code = 2
    status = 400
    code = "invalid_request"


class NotFound(AgentServeError):
    """The named thing does not exist."""

    exit_code = 3
    status = 404
    code = "not_found"


class Conflict(AgentServeError):
    """The act does not fit the state the thing is in."""

    exit_code = 3
    status = 409
    code = "conflict"


class TooLarge(BadInput):
    """A body, a prompt or a file is over its limit."""

    status = 413
    code = "too_large"


class Unauthorized(BadInput):
    """No API key was given, or it is not known."""

    status = 401
    code = "invalid_api_key"


class Forbidden(AgentServeError):
    """The caller is known, and may not do this."""

    exit_code = 3
    status = 403
    code = "forbidden"


class LimitReached(AgentServeError):
    """A tenant is at one of its limits, which `code` names; after `retry_after_s` it may come again."""

    exit_code = 4
    status = 429

    def __init__(self, message: str, code: str = "rate_limit_exceeded", retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class Unavailable(AgentServeError):
    """A part that is needed cannot be reached: Redis, the broker, an engine, a port."""

    exit_code = 4
    status = 503
    code = "unavailable"


class EngineFailed(AgentServeError):
    """An engine broke off or refused a call. `retryable`: another instance may well serve it. `said`: in its words."""

    status = 502
    code = "engine_failed"

    def __init__(self, message: str, *, retryable: bool = True, said: str = "") -> None:
        super().__init__(f"{message}: {said}" if said else message)
        self.retryable = retryable
        self._record = message

    @property
    def record(self) -> str:
        """The message without what the engine said."""
        return self._record

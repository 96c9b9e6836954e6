"""What can be wrong with what the scheduler is told; every error names the thing and what is allowed."""


class SchedulerError(Exception):
    """Root of every error raised by `scheduler`."""


class UnknownProfile(SchedulerError):
    """No measured profile exists for a GPU and model."""


class BadProfile(SchedulerError):
    """A profile that a user gave is not sound; the message names its source and the key."""


class UnknownPolicy(SchedulerError):
    """No policy is registered under a name."""


class InvalidConfig(SchedulerError):
    """A setting of the scheduler or of a policy is out of its range."""


class InvalidEvent(SchedulerError):
    """An event does not fit the state: an unknown request or instance, or one announced twice."""

"""What a call says of itself in headers: read, checked, refused with the header's name."""

import pytest

from agentserve.gateway.errors import BadParameter, error_json, error_object
from agentserve.gateway.identity import CallIdentity, read_identity
from workflows.errors import DuplicateStep, InvalidSlo

NOW_S = 1000.0


def read(**given: str) -> CallIdentity:
    headers = {f"x-agentserve-{name.replace('_', '-')}": value for name, value in given.items()}
    return read_identity(headers, 3600.0, NOW_S)


def test_a_call_may_say_nothing() -> None:
    assert read() == CallIdentity()


def test_every_header_is_read() -> None:
    assert read(
        run_id="r-1", step_id="team.3/draft#2", node="plan", workflow="w", slo_s="2.5", deadline="1010",
        parent_steps="a, b,", request_id="q", session_id="s",
    ) == CallIdentity(
        run_id="r-1", step_id="team.3/draft#2", node="plan", workflow="w", slo_s=2.5, deadline_s=1010.0,
        parents=("a", "b"), request_id="q", session_id="s",
    )  # fmt: skip


def test_names_outside_ascii_come_percent_encoded() -> None:
    assert read(node="pr%C3%BCfen").node == "prüfen"


def test_other_products_session_headers_are_read_in_order() -> None:
    given = {"x-dynamo-session-id": "late", "x-session-id": "first"}
    assert read_identity(given, 1.0, NOW_S).session_id == "first"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run_id", ""),
        ("run_id", "a b"),
        ("run_id", "-a"),
        ("run_id", "a" * 129),
        ("step_id", "ü"),
        ("step_id", "a b"),
        ("node", "a%0Ab"),
        ("workflow", "w" * 129),
        ("parent_steps", "a b"),
        ("parent_steps", ",".join(map(str, range(300)))),
        ("request_id", "a,b"),
        ("slo_s", "nan"),
        ("slo_s", "inf"),
        ("slo_s", "0"),
        ("slo_s", "-3"),
        ("slo_s", "3601"),
        ("slo_s", "1s"),
        ("deadline", "soon"),
        ("deadline", "4601"),
    ],
)
def test_a_bad_header_is_named(name: str, value: str) -> None:
    with pytest.raises(BadParameter) as caught:
        read(**{name: value})
    assert caught.value.param == f"x-agentserve-{name.replace('_', '-')}"
    assert str(caught.value).startswith(caught.value.param)


def test_errors_have_openais_shape_and_the_right_status() -> None:
    assert error_json(BadParameter("stop", "must be text")) == (
        400,
        error_object(400, "stop: must be text", "invalid_request", "stop"),
    )
    assert error_json(DuplicateStep("twice"))[0] == 409
    assert error_json(InvalidSlo("late"))[0] == 400

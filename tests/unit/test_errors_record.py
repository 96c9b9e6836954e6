"""What is kept of an engine's failure: never its own words, as those may quote the prompt."""

import pytest

from agentserve.engines.chunks import parse_chunk
from agentserve.errors import BadInput, EngineFailed


def test_an_engines_words_reach_the_client_and_are_not_kept() -> None:
    with pytest.raises(EngineFailed) as caught:
        parse_chunk(b'{"error": {"message": "cannot take: my secret prompt", "code": 400}}')
    assert str(caught.value) == "the engine broke off: cannot take: my secret prompt"
    assert caught.value.record == "the engine broke off"


def test_other_messages_are_our_own_and_kept_whole() -> None:
    assert BadInput("a bad fleet file").record == "a bad fleet file"
    assert EngineFailed("http://gpu-host: silent for 30 s").record == "http://gpu-host: silent for 30 s"

"""Does an engine serve a model that it does not list? Plain servers may, as `transformers serve` does from a folder."""

import logging
from typing import Final

import httpx

from agentserve.engines.bodies import CHAT, COMPLETIONS
from agentserve.workers.asking import post
from agentserve.workers.kinds import Identity

logger = logging.getLogger(__name__)

_PLAIN: Final = ("openai", "transformers")
"""Engines of other kinds list all that they serve, and llama.cpp serves its one model under any name."""


async def serves_unlisted(
    client: httpx.AsyncClient, url: str, identity: Identity, model: str, timeout_s: float
) -> bool:
    """Whether a plain server answers a call of one token for a model that is not on its list; warns if it does."""
    if identity.kind not in _PLAIN:
        return False
    asked = {"model": model, "max_tokens": 1}
    for path, prompt in (
        (CHAT, {"messages": [{"role": "user", "content": "ping"}]}),
        (COMPLETIONS, {"prompt": "ping"}),
    ):
        try:
            answer = await post(client, path, {**asked, **prompt}, timeout_s)
        except httpx.HTTPError:
            return False
        if answer.is_good:
            logger.warning("engine %s does not list %s, but serves it", url, model)
            return True
    return False

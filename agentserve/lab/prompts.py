"""What text does a planned call send? Words made from block ids, so that equal blocks are equal text everywhere.

Every word is a short common one that starts with a space: one token in the emulator and, nearly always, in the
tokenizers of real models.
"""

import hashlib
from functools import lru_cache
from typing import Final

from agentserve.lab.plans import RunPlan, StepPlan

_COMMON: Final = (
    " the of and to in is you that it he was for on are as with his they at be this have from or one had by word "
    "but not what all were we when your can said there use an each which she do how their if will up other about "
    "out many then them these so some her would make like him into time has look two more write go see number no "
    "way could people my than first water been call who oil its now find long down day did get come made may part "
    "over new sound take only little work know place year live me back give most very after thing our just name "
    "good man think say great where help much before line right too mean old any same tell boy follow came want "
    "show also around form three small set put end does well large must big even such here why ask men change "
    "read need land home us move try kind hand again off play spell air away house point page letter mother "
    "answer found study still learn should world high every near add food own below last school father keep tree "
    "never start city earth eye light head under story saw left few while along might close seem next hard open "
    "begin life always those both paper group often run side car mile night walk white sea grow took river four "
    "state once book hear stop second late miss idea eat face watch far real"
)
WORDS: Final = tuple(_COMMON.split())
_OVERHEAD_TOKENS: Final = 10
"""The directive and the chat template around the words."""


def reply_directive(output_tokens: int) -> str:
    """What tells the emulator how long to answer; a scheduler sees it only as prompt text."""
    return f" [[reply tokens={output_tokens}]]"


def prompt_of(plan: RunPlan, step: StepPlan, seed: int = 0) -> str:
    """The prompt of a call, about `prompt_tokens` long, with the length of its answer as its last words."""
    directive = reply_directive(step.output_tokens)
    if step.prompt_text is not None:
        return step.prompt_text + "\n" + directive
    wanted = max(1, step.prompt_tokens - _OVERHEAD_TOKENS)
    parts: list[str] = []
    filled = 0
    for index, block in enumerate(step.block_ids()):
        size = min(round((index + 1) * step.block_tokens), wanted) - filled
        if size > 0:
            parts.append(_words(f"{seed}/{step.block_space}/{block}", size))
            filled += size
        if filled >= wanted:
            break
    if filled < wanted:
        parts.append(_own_words(f"{seed}/{plan.run_id}/{step.step_id}", wanted - filled))
    return "".join((*parts, directive))


@lru_cache(maxsize=131_072)
def _words(key: str, count: int) -> str:
    return _own_words(key, count)


def _own_words(key: str, count: int) -> str:
    return "".join([_SPACED[byte] for byte in hashlib.shake_128(key.encode()).digest(count)])


_SPACED: Final = tuple(f" {WORDS[index % len(WORDS)]}" for index in range(256))

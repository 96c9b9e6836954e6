"""Lets two real engines share two cores: Python imports this by its name when the folder is on PYTHONPATH.

vLLM's processes wait for each other by `os.sched_yield` in a loop, and pin themselves to cores. With a core of its own
for each that is quickest; with more processes than cores they starve each other for 20–30 s at a time. Here a yield is
a short sleep and pinning does nothing. Nothing of the engine's protocol or results is touched.
"""

import os
import time


def _yield() -> None:
    time.sleep(0.0003)


def _stay_anywhere(_pid: int, _cores: object) -> None:
    return


os.sched_yield = _yield
os.sched_setaffinity = _stay_anywhere

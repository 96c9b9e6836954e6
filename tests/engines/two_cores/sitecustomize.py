"""Lets two real engines share two cores: Python imports this by its name when the folder is on PYTHONPATH.

vLLM's processes wait for each other by `os.sched_yield` in a loop and pin themselves to cores, and NIXL's thread asks
for arrivals without a pause. With a core of its own for each that is quickest; here they starve each other for 20–30 s
at a time. So a yield is a short sleep, pinning does nothing, and NIXL waits up to a millisecond for an arrival. Nothing
of the engine's protocol or results is touched.

Nor does a process here outlive the one that started it: vLLM's workers, orphaned, would spin for ever.
"""

import ctypes
import os
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder

_DIE_WITH_PARENT = (1, 9)  # PR_SET_PDEATHSIG, SIGKILL
_YIELD_S = 0.0003
_NIXL = "nixl_cu12._api"
_NIXL_WAIT_US = 1000


def _yield() -> None:
    time.sleep(_YIELD_S)


def _stay_anywhere(_pid: int, _cores: object) -> None:
    return


class _PatientNixl:
    """Finds NIXL's Python module as ever, and has it configure agents that wait."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _NIXL else None
        if spec is None:
            return None
        load = spec.loader.exec_module

        def load_patiently(module: object) -> None:
            load(module)
            config = module.nixlBind.nixlAgentConfig

            class Patient(config):
                def __setattr__(self, name: str, value: object) -> None:
                    super().__setattr__(name, _NIXL_WAIT_US if name == "pthrDelay" else value)

            module.nixlBind.nixlAgentConfig = Patient

        spec.loader.exec_module = load_patiently
        return spec


ctypes.CDLL(None).prctl(*_DIE_WITH_PARENT)
os.sched_yield = _yield
os.sched_setaffinity = _stay_anywhere
sys.meta_path.insert(0, _PatientNixl)

"""With which flags must an engine of a kind be started to have what it was found without?"""

from collections.abc import Mapping
from typing import Final

_NIXL: Final = """--kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'"""
REMEDIES: Final[Mapping[str, Mapping[str, str]]] = {
    "vllm": {
        "priorities": "--scheduling-policy priority",
        "KV transfer": _NIXL,
        "report of cached tokens": "--enable-prompt-tokens-details",
        "tool parser": "--enable-auto-tool-choice --tool-call-parser NAME",
        "reasoning parser": "--reasoning-parser NAME",
        "metrics": "start without --disable-log-stats",
    },
    "sglang": {
        "priorities": "--enable-priority-scheduling",
        "KV transfer": "--disaggregation-mode prefill (and decode on another)",
        "report of cached tokens": "--enable-cache-report",
        "tool parser": "--tool-call-parser NAME",
        "reasoning parser": "--reasoning-parser NAME",
        "metrics": "--enable-metrics",
    },
    "trtllm": {"metrics": "return_perf_metrics: true, in the file that --config names"},
    "llamacpp": {"metrics": "--metrics", "tool parser": "--jinja"},
    "emulator": {"priorities": "--scheduling-policy priority"},
}
"""With what an engine of a kind must be started to have what it was found without."""

"""`agentserve engine probe` on real vLLM: it says what the engine is, what it can do, and how it was started."""

import json

from tests.e2e.live import agentserve
from tests.engines.conftest import Pair
from tests.engines.servers import BLOCK_TOKENS, KV_BLOCKS, sample
from tests.engines.test_split import EXPIRED, total, until_free


async def test_vllm_is_probed_and_left_as_it_was(vllm_pair: Pair) -> None:
    server = vllm_pair[0]
    before = await server.metrics()
    probed = await agentserve("engine", "probe", server.url, "--json", within_s=120)
    assert probed.code == 0, probed.err
    found = json.loads(probed.out)
    drawn = await agentserve("engine", "probe", server.url, within_s=120)
    print(drawn.out)
    await until_free(server)
    after = await server.metrics()
    assert found["kind"] == "vllm"
    assert found["version"].startswith("0.32")
    assert total([after], EXPIRED) == total([before], EXPIRED), "the probe left no KV behind"
    assert sample(after, "vllm:num_requests_running") == 0
    assert f"{BLOCK_TOKENS * KV_BLOCKS}" in probed.out
    assert "nixl pull" in drawn.out.lower()

"""How is llama.cpp's own server run without a build of it? By the Python module that holds it; it listens until killed.

Run by the engines' Python: `python tests/engines/serve_llamacpp.py FILE NAME PORT SLOTS CONTEXT_TOKENS`.
"""

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve a GGUF file under a name. Every slot has the context to itself; the cache is float32."""
    file, name, port, slots, context_tokens = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context_tokens
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # In half precision a replayed cache differs from the one that was decoded, by more than near ties lie apart.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.use_jinja = params.endpoint_metrics = params.endpoint_slots = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()

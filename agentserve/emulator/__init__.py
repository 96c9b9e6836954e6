"""A vLLM-like engine without the GPU: an iteration-level model, and the HTTP server that drives it."""

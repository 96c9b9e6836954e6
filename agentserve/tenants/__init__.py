"""Whose calls are these, and what may they use? Tenants and the hashes of their API keys, from one TOML file."""

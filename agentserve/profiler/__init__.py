"""How fast is a running engine? Measured over its own HTTP API and fitted to a GPU profile."""

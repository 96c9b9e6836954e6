"""How facts leave and reach the process: the MQTT bus, OpenTelemetry spans and Prometheus metrics."""

"""Serves LLM agents so that their whole runs finish inside one SLO, on the GPUs at hand."""

"""Workloads, replay, simulation and reports: where the scheduler is measured."""

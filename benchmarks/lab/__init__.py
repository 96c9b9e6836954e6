"""The experiments behind docs/lab-results.md: tuning of the baselines, calibration of loads, and the study itself."""

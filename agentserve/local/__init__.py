"""Runs the parts of a cluster as child processes of this one, so that nothing else needs to be installed."""

"""Measurements of what cancelling costs, run by `make bench`."""

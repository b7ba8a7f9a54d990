"""Integrations: turn a host's existing tasks into runs, with one module for each executor."""

"""The HTTP API. Nothing here needs or changes the host's global REST_FRAMEWORK settings."""

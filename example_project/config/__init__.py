"""The example site: settings and URLs."""

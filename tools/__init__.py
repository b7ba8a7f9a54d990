"""Tools for maintainers: translations, screenshots and diagrams."""

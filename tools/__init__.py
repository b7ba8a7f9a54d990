"""Tools for maintainers: translations and screenshots."""

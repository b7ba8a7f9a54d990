"""A cancel button for Django projects with long-running work."""

"""SQL beyond the ORM: the clock, row locks, trees, bulk writes, retries, and threads."""

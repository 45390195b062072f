"""Results drawn for people: pages and tables."""

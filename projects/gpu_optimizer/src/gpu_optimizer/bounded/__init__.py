"""Readers of what strangers sent: within bounds that are checked before they cost."""

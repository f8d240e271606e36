"""Model classes per architecture, each module a lazy facade named by its registry key."""

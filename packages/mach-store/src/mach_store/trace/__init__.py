"""Routing traces: which experts each token was routed to, as a file, and what a bank makes of it."""

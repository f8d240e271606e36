"""Owns constrained decoding: what an answer may look like → which tokens may come next.

Nothing in here knows HTTP, asyncio or MLX.
"""

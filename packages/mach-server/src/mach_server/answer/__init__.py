"""Owns the way from a model's raw text to what a client sees: text, reasoning, tool calls.

Nothing in here knows HTTP, asyncio or MLX.
"""

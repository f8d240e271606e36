"""What will run, with what, how large and how fast: said by the engine's own gates, without loading."""

"""Tool rounds: running what the model calls, above the engine, which knows nothing of tools."""

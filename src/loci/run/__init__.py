"""A plan carried out: runner, KV store, engine, memory."""

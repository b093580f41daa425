"""Methods that keep fewer tokens of a KV cache, or fewer bits of each."""

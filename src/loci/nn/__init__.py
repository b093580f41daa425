"""Building blocks of a forward: packed weights, attention, rotary embedding, work buffers."""

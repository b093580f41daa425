"""Tiers of memory: aligned buffers, files of blocks, background reads, who stays resident."""

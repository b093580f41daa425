"""Text without a model: words, times, names, facts, their consolidation, and answers from them."""

"""Methods of recall: what is kept of a conversation, and what is found again."""

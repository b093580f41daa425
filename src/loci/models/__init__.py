"""Models as files: GGUF and Hugging Face readers, packs, tokenizers, embedders, endpoints."""

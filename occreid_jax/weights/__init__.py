"""Weights from elsewhere: `trees` (merging named arrays into a parameter tree), `read` (safetensors files)."""

"""Weights from elsewhere: `trees` (merging named arrays into a parameter tree), `read` (safetensors files),
`reference` (files with outputs of the PyTorch originals, and the tolerance rule)."""

"""Networks as Flax Linen modules: `layers` (norms, attention, blocks), `vit` (the image transformer), `heads` (BNNeck)."""

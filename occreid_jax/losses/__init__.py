"""Losses as pure functions of float32 arrays.

`identity` (cross entropy), `metric` (triplets, centre loss, distances), `margin` (heads on cosine logits), `contrastive`
(image and text), `totals` (the sums that TransReID and CLIP-ReID train with).
"""

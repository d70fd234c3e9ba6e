"""Losses as pure functions of float32 arrays: `identity` (cross entropy) and `metric` (triplet, distances)."""

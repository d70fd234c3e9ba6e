"""occreid_jax: occluded person re-identification in JAX and Flax.

`data` (readers, tables, samplers), `augment`, `synthetic` (the embedded benchmark), `nn`, `losses`, `weights`, `methods`,
`train`, `evaluation` and `report`; `types` holds the words they share. docs/architecture.md tells how they fit together.
"""

__version__ = "0.1.0"

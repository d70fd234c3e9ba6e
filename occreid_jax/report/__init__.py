"""One HTML file about a run: results, curves, ranked lists, what the network looks at, augmented samples, the config.

Public: `write_report`. Everything that only one method has comes through `Method.inspect` and the stages' ``augment``.
"""

from occreid_jax.report.page import write_report

__all__ = ["write_report"]

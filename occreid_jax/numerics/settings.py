"""Settings of a reproduction: those of a shipped config, with what a reference file says in their place.

A setting that a method gets later has its default here too, and a recipe that leaves the official code fails its comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from occreid_jax.config import shipped


def reproduction(config: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The config file ``configs/<name>.py:arguments`` for float32 products, with ``changes`` (dotted keys) in ``method``.

    A key that the config does not have, or a value of another type, is a fault of the caller and raises KeyError or TypeError.
    """
    settings = shipped(config)
    settings.dtype = "float32"
    settings.method.update_from_flattened_dict(dict(changes))
    return settings

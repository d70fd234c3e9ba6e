"""The methods, by name. A new one is a file here, a config, a test and one line in `NAMES`.

`create(config, meta)` builds a method; `occreid_jax.types.Method` is what it must offer, `base.MethodBase` holds defaults.
"""

from __future__ import annotations

import importlib

from occreid_jax.errors import UserError
from occreid_jax.types import Meta, Method

NAMES = {
    "baseline": "occreid_jax.methods.baseline:Baseline",
    "clip_pretraining": "occreid_jax.methods.clip_pretraining:ClipPretraining",
    "colour_histogram": "occreid_jax.methods.colour_histogram:ColourHistogram",
    "transreid": "occreid_jax.methods.transreid:TransReID",
    "clip_reid": "occreid_jax.methods.clip_reid:ClipReID",
    "dpl_reid": "occreid_jax.methods.dpl_reid:DplReID",
    "dpm_pp": "occreid_jax.methods.dpm_pp:DPMPP",
    "fed": "occreid_jax.methods.fed:FED",
    "dpeformer": "occreid_jax.methods.dpeformer:DPEFormer",
    "ogfr": "occreid_jax.methods.ogfr:OGFR",
}


def create(config, meta: Meta) -> Method:
    """The method that ``config.method.name`` names, built for the data that ``meta`` describes."""
    return method_class(config.method.name)(config, meta)


def method_class(name: str) -> type:
    """The class of a method. Raises `UserError` for an unknown name."""
    if name not in NAMES:
        raise UserError(f"config.method.name: unknown method '{name}'; known: {', '.join(sorted(NAMES))}")
    module, _, attribute = NAMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)

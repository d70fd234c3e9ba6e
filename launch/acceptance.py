"""Looks at a new machine: what it is, whether everything computes there as it should, and how fast.

    python launch/acceptance.py                                  nine minutes, everything; the table is acceptance/acceptance.md
    python launch/acceptance.py --minutes=20 --out=h100
    python launch/acceptance.py --parts=devices,peaks,speed      some of the parts
    python launch/acceptance.py --size=small --demos=            a quick look that runs anywhere, without demo runs
    python launch/acceptance.py --methods=ogfr --demos=ogfr      the steps and the demo run of one method

The parts, in order: devices (versions too), precision (a step of every method and stage in bfloat16 beside float32), resume (a
run that is killed and goes on), peaks (matrix products and copies by themselves), speed (training and embedding of every method
and stage, the ViT baseline at batches of 64 and 256), peer (the same encoder in PyTorch, where torch and timm are installed),
profile (dearest kernels of a step), demos (runs of the embedded benchmark in the minutes left). Each has at most its share of the
time, and what one leaves over goes to those behind it. Every part runs in a process of its own, and every
row is written to OUT/<part>.json as soon as it exists, so that a cut-off loses nothing; OUT/acceptance.json and acceptance.md
hold them all. The same command again measures anew and goes on with demo runs that were stopped.
"""

from __future__ import annotations

import command
from absl import flags

MINUTES = flags.DEFINE_float("minutes", 9.0, "time for everything", lower_bound=0.1)
OUT = flags.DEFINE_string("out", "acceptance", "folder for what is found")
PARTS = flags.DEFINE_list("parts", [], "parts to run (default: all)")
SIZE = flags.DEFINE_enum("size", "auto", ["auto", "published", "small"], "auto: published sizes where there is an accelerator")
METHODS = flags.DEFINE_list("methods", [], "methods whose steps are looked at in precision and speed (default: all)")
EVERY = ["baseline", "dpm_pp", "fed", "dpeformer", "ogfr", "dpl_reid", "clip_reid", "transreid"]
DEMOS = flags.DEFINE_list("demos", EVERY, "configs of the demo runs")


def main() -> int:
    from functools import partial
    from pathlib import Path

    from occreid_jax.acceptance.run import PARTS as KNOWN
    from occreid_jax.acceptance.run import accept
    from occreid_jax.errors import UserError
    from occreid_jax.methods import NAMES

    chosen = tuple(PARTS.value) or tuple(KNOWN)
    if unknown := [name for name in chosen if name not in KNOWN]:
        raise UserError(f"--parts: there is no part '{unknown[0]}'; the parts are {', '.join(KNOWN)}")
    if unknown := [name for name in METHODS.value if name not in NAMES]:
        raise UserError(f"--methods: there is no method '{unknown[0]}'; the methods are {', '.join(sorted(NAMES))}")
    demos = tuple(filter(None, DEMOS.value))
    if unknown := [name for name in demos if not (command.ROOT / "configs" / f"{name}.py").is_file()]:
        raise UserError(f"--demos: there is no configs/{unknown[0]}.py")
    out = Path(OUT.value).absolute()
    out.mkdir(parents=True, exist_ok=True)
    small = {"auto": None, "published": False, "small": True}[SIZE.value]
    parts = tuple(name for name in KNOWN if name in chosen)
    found = accept(out, command.ROOT, MINUTES.value, parts, demos, small, tuple(METHODS.value), partial(print, flush=True))
    print((out / "acceptance.md").read_text())
    print(f"written: {out / 'acceptance.json'}, {out / 'acceptance.md'}")
    return int(any(part["ended"].startswith(("failed", "ended")) for part in found.values()))


if __name__ == "__main__":
    command.run(main)

"""Compiles training steps and embedding of a config for chips that are not there, and prints what the compiler says of them.

    python launch/compile.py --config=configs/baseline.py:dataset=market1501 --topology=v5e:2x4
    python launch/compile.py --config=configs/dpm_pp.py:dataset=market1501 --topology=v5e:2x4 --stage=metric --json=metric.json

No accelerator, no dataset and no network are needed, only the compiler: pip install -e ".[tpu]" (or ".[cuda]" for h100:N). A step
of a ViT-B takes minutes to compile; --depth=2 cuts every transformer to two blocks.

For every stage and for embedding it prints: seconds to compile; bytes on a chip (arguments, work space, peak); FLOPs of a chip
beside the method's own formulas; collectives with the time of their bytes in a ring; the compiler's estimate by phase, and what
has none; images per second and share of the chip's peak if nothing ran side by side; the dearest instructions; float32 products;
loops, large gathers, scatters, sorts and copies. Times are estimates of the compiler or counts: nothing was run.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
TOPOLOGY = flags.DEFINE_string("topology", None, "chips: v5e:2x4, v5p:2x2x1, v6e:4x4, h100:8 ...; a wrong one lists them all")
STAGE = flags.DEFINE_list("stage", [], "stages to compile, or embed (default: all stages, and embed)")
BATCH = flags.DEFINE_integer("batch", 0, "pictures of all chips in a batch (default: those of the config)", lower_bound=0)
DEPTH = flags.DEFINE_integer("depth", 0, "blocks of every transformer (default: all)", lower_bound=0)
OPTIONS = flags.DEFINE_list("options", [], "options of the compiler, NAME=VALUE with commas between")
TOP = flags.DEFINE_integer("top", 8, "rows of every list", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "also write the figures to this file, after every program")
DUMP = flags.DEFINE_string("dump", None, "also write the optimised programs (HLO) into this folder")
flags.mark_flag_as_required("config")
flags.mark_flag_as_required("topology")

MIB, GIB = 2**20, 2**30


def main() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # shapes are worked out here, whatever this machine has

    from pathlib import Path

    from configs import common
    from occreid_jax import distributed
    from occreid_jax.files import write_json
    from occreid_jax.programs import compiled, figures, hlo, topologies
    from occreid_jax.train.performance import with_batch

    config = CONFIG.value
    devices = topologies.open_topology(TOPOLOGY.value, **distributed.switches(config.mesh))
    options = topologies.compiler_options(TOPOLOGY.value) | given_options()
    preset = common.DATASETS[config.data.name]
    found = {"topology": TOPOLOGY.value, "jax": jax.__version__, "dtype": "", "depth": DEPTH.value or None, "programs": []}
    with compiled.shallow(DEPTH.value):
        method = compiled.open_method(config, preset["images"], preset["identities"], preset["cameras"], devices)
        names, stages = compiled.programs(method, tuple(STAGE.value)), {stage.name: stage for stage in method.stages()}
        found["dtype"] = method.dtype.name
        print(headline(config, method, devices), flush=True)
        for name in names:
            if name == compiled.EMBED:
                batch = BATCH.value or config.evaluation.batch_size
                program = compiled.compile_embed(method, devices, batch, options)
            else:
                batch = BATCH.value or stages[name].sampler.batch_size
                program = compiled.compile_stage(method, config, with_batch(stages[name], batch), devices, options)
            row = figures.figures(program, hlo.Text(program.text))
            found["programs"].append(row)
            print("\n".join(lines(row)), flush=True)
            if DUMP.value:
                Path(DUMP.value).mkdir(parents=True, exist_ok=True)
                (Path(DUMP.value) / f"{config.method.name}-{name}.hlo").write_text(program.text)
            if JSON.value:
                write_json(Path(JSON.value), found)


def given_options() -> dict[str, str]:
    """``--options`` as a dictionary."""
    from occreid_jax.errors import UserError

    if wrong := [item for item in OPTIONS.value if "=" not in item]:
        raise UserError(f"--options={wrong[0]}: give NAME=VALUE, for example --options=xla_tpu_scoped_vmem_limit_kib=32768")
    return dict(item.split("=", 1) for item in OPTIONS.value)


def headline(config, method, devices) -> str:
    import jax

    height, width = method.meta.image_size
    cut = f", {DEPTH.value} blocks" if DEPTH.value else ""
    return (
        f"{config.method.name}, {config.data.name} ({method.meta.images:,} pictures on every chip), {height}x{width}, "
        f"{method.dtype.name}{cut}, {devices.count} x {devices.mesh.devices.flat[0].device_kind} ({TOPOLOGY.value}), "
        f"jax {jax.__version__}; nothing is run: times are the compiler's estimates"
    )


def lines(row: dict):
    """One program in words."""
    memory, flops, took = row["memory"], row["flops"], row["estimate"]
    share = row["batch_size"] // row["chips"]
    yield f"\n{row['program']}: batch {row['batch_size']} ({share} a chip), compiled in {row['compile_seconds']:.1f} s"
    yield (
        f"  memory      arguments {memory['arguments'] / GIB:.2f} GiB, work space {memory['work'] / GIB:.2f}, "
        f"peak {memory['peak'] / GIB:.2f} of {memory['chip'] / GIB:.0f} ({100 * memory['share']:.0f} %)"
    )
    beside = f", {flops['ratio']:.3f} times the {flops['analytic'] / 1e12:.4f} of its formulas" if flops["ratio"] else ""
    accessed = f"; {row['accessed_bytes'] / 1e9:.2f} GB accessed" if row["accessed_bytes"] else ""
    yield f"  operations  {flops['compiler'] / 1e12:.4f} TFLOP a chip{beside}{accessed}"
    for sent in row["collectives"]:
        yield (
            f"  collective  {sent['kind']} {sent['dtype']} x{sent['count']}: {sent['bytes'] / 1e6:.3f} MB, "
            f"{1e3 * sent['ring_seconds']:.3f} ms in a ring"
        )
    yield from estimated(took) if took else ["  estimate    none: this compiler makes no estimate of time"]
    yield from lists(row)


def estimated(took: dict):
    """The estimate of time in words."""
    phases = ", ".join(f"{phase} {1e3 * seconds:.2f}" for phase, seconds in took["phases"].items())
    yield (
        f"  estimate    {1e3 * took['step_seconds']:.2f} ms a step: {1e3 * took['compute_seconds']:.2f} of the compiler "
        f"({phases}) and {1e3 * took['ring_seconds']:.2f} of collectives in a ring, one after the other"
    )
    missing = ", ".join(f"{count} {kind}" for kind, count in took["without_estimate"].items())
    yield f"  speed       {took['images_per_second']:,.0f} images/s, {100 * took['utilisation']:.1f} % of peak"
    yield f"  without an estimate: {missing or 'nothing'}"
    for each in took["dearest"][: TOP.value]:
        yield f"  {1e3 * each['seconds']:8.3f} ms  {told(each)}"


def lists(row: dict):
    """Float32 products and what else is worth a look."""
    flops = row["products"]["flops"]
    shares = ", ".join(f"{dtype} {100 * value / sum(flops.values()):.1f} %" for dtype, value in flops.items())
    yield f"  products    {shares or 'none'}"
    for each in [each for each in row["products"]["float32"] if each["share"] >= 1e-3][: TOP.value]:
        yield f"  {100 * each['share']:8.2f} % float32    {each['scope'][-120:]}"
    for kind in ("loops", "gathers", "scatters", "sorts", "copies"):
        for each in row[kind][: TOP.value]:
            yield f"  {each['bytes'] / MIB:8.1f} MiB {told(each)}"


def told(each: dict) -> str:
    """An instruction in words."""
    return f"{each['kind']:9s} {each['name'][:28]:28s} {each['shape'][:44]:44s} {each['scope'][-90:]}"


if __name__ == "__main__":
    command.run(main)

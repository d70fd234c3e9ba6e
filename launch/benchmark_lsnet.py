"""Times LSNet beside a ViT of about the same arithmetic: forward, and forward with backward, in turn in one process.

    python launch/benchmark_lsnet.py
    python launch/benchmark_lsnet.py --network=lsnet_b --batch=64 --size=224,224

The ViT has patches of 16 pixels, a depth of 6 to 12 and heads of 32 channels; of these the one whose count of operations comes
nearest. LSNet computes with many small kernels where a ViT has few large products, so equal arithmetic is not equal time; the
ratio says by how much. Random weights and pictures.
"""

from __future__ import annotations

import statistics
import time

import command
from absl import flags

NETWORK = flags.DEFINE_string("network", "lsnet_t", "lsnet_t, lsnet_s, lsnet_b or another name of occreid_jax/nn/lsnet.py")
BATCH = flags.DEFINE_integer("batch", 16, "pictures at a time", lower_bound=1)
SIZE = flags.DEFINE_list("size", ["256", "128"], "height and width of the pictures")
REPEATS = flags.DEFINE_integer("repeats", 10, "timed passes of each", lower_bound=2)


def main() -> None:
    import jax
    import jax.numpy as jnp

    from occreid_jax.errors import UserError
    from occreid_jax.nn import lsnet, vit

    if len(SIZE.value) != 2 or not all(side.isdigit() and int(side) >= 64 for side in SIZE.value):
        raise UserError(f"--size={','.join(SIZE.value)}: give height and width, 64 or more, for example --size=256,128")
    image_size = tuple(int(side) for side in SIZE.value)
    try:
        own = lsnet.size_of(NETWORK.value)
    except ValueError as error:
        raise UserError(f"--network: {error}") from error
    operations = lsnet.forward_flops(own, image_size)
    size = vit.nearest_size(operations, image_size)
    images = jax.random.normal(jax.random.key(0), (BATCH.value, *image_size, 3))
    small, beside = lsnet.LSNet(own), vit.ViT(size, image_size)
    params, running = lsnet.initial_values(own, jax.random.key(1))

    def of_lsnet(params, images):
        out, _ = small.apply({"params": params, "batch_stats": running}, images, True, mutable=["batch_stats"])
        return out.pooled

    def of_vit(params, images):
        return beside.apply({"params": params}, images).cls

    networks = {
        NETWORK.value: (of_lsnet, params, operations),
        f"ViT {size.width}x{size.depth}": (
            of_vit, beside.init(jax.random.key(2), images)["params"], vit.forward_flops(size, image_size, 16, 16)
        ),
    }  # fmt: skip
    passes = {
        "forward": lambda network: network,
        "forward and backward": lambda network: jax.grad(lambda params, x: jnp.sum(jnp.square(network(params, x)))),
    }
    compiled = {
        (name, kind): (jax.jit(make(network)), given)
        for name, (network, given, _) in networks.items()
        for kind, make in passes.items()
    }
    times = timed(compiled, images, REPEATS.value)
    height, width = image_size
    print(f"{BATCH.value} pictures of {height}x{width}, float32, {jax.devices()[0].device_kind}; median of {REPEATS.value}")
    for name, (_, _, count) in networks.items():
        shown = ", ".join(f"{kind} {1e3 * statistics.median(times[name, kind]) / BATCH.value:.2f} ms" for kind in passes)
        print(f"{name:14s} {count / 2e9:.3f} G multiply-adds a picture (counted); a picture: {shown}")
    first, second = networks
    for kind in passes:
        ratios = [one / two for one, two in zip(times[first, kind], times[second, kind], strict=True)]
        print(f"{kind}: {first} takes {statistics.median(ratios):.2f} times as long")


def timed(compiled: dict, images, repeats: int) -> dict:
    """Seconds of every pass, the networks in turn, so that other work on the machine meets them alike."""
    import jax

    times = {name: [] for name in compiled}
    for number in range(repeats + 1):  # the first one compiles
        for name, (function, given) in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(function(given, images))
            if number:
                times[name].append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    command.run(main)

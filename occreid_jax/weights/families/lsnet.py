"""Checkpoints of LSNet, trained on ImageNet, in both directions: its features; the classifier is left out.

Source: jameslahm/lsnet, ``model/lsnet.py``. Blocks have the same numbers here and there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from occreid_jax.errors import UserError
from occreid_jax.nn.lsnet import LSNet, LSNetSize
from occreid_jax.weights.families import Description, Family
from occreid_jax.weights.families.clip import COUNTS, batch_norm_rules
from occreid_jax.weights.naming import Arrays, Entry, LeftOut, Rule, check_shapes, export_arrays, found, import_arrays

PARAMS, STATISTICS = "params/lsnet/", "extra/batch_stats/lsnet/"
MARK = re.compile(r"blocks\d\.\d+\.mixer\.lkp\.")  # what no other network here has
LEFT_OUT = (
    LeftOut(r".*\.num_batches_tracked", COUNTS),
    LeftOut(r".*\.attention_bias_idxs", "follows from the size of the grid"),
    LeftOut(r"head(_dist)?\..*", "ImageNet classifier, which no forward pass uses"),
)
CONVOLUTIONS = {  # inside a block, ours and theirs
    "rep/dw3": "mixer.conv",
    "rep/dw1": "mixer.conv1",
    "ls/lkp/cv1": "mixer.lkp.cv1",
    "ls/lkp/cv2": "mixer.lkp.cv2",
    "ls/lkp/cv3": "mixer.lkp.cv3",
    "attn/qkv": "mixer.m.qkv",
    "attn/dw": "mixer.m.dw",
    "attn/proj": "mixer.m.proj.1",
    "ffn/pw1": "ffn.m.pw1",
    "ffn/pw2": "ffn.m.pw2",
}


def convolution_rules(path: str, name: str) -> tuple[Rule, ...]:
    """A convolution and its batch norm; ``path`` counts from this network's."""
    return (
        Rule(f"{PARAMS}{path}conv/kernel", f"{name}c.weight", "conv"),
        *batch_norm_rules(f"{PARAMS}{path}bn/", f"{STATISTICS}{path}bn/", f"{name}bn."),
    )


def network_rules() -> tuple[Rule, ...]:
    """The whole network but its classifier."""
    ours, theirs = "stage_{s}_{j}/", "blocks{s}.{j}."
    rules = [*convolution_rules("stem_{i}/", "patch_embed.{i}."), *convolution_rules(ours, theirs)]
    for inner, name in CONVOLUTIONS.items():
        rules += convolution_rules(f"{ours}{inner}/", f"{theirs}{name}.")
    for inner, name in (("se/fc1", "se.fc1"), ("se/fc2", "se.fc2"), ("ls/lkp/cv4", "mixer.lkp.cv4")):
        rules.append(Rule(f"{PARAMS}{ours}{inner}/kernel", f"{theirs}{name}.weight", "conv"))
        rules.append(Rule(f"{PARAMS}{ours}{inner}/bias", f"{theirs}{name}.bias"))
    rules.append(Rule(f"{PARAMS}{ours}ls/lkp/cv4/norm_scale", f"{theirs}mixer.lkp.norm.weight"))
    rules.append(Rule(f"{PARAMS}{ours}ls/lkp/cv4/norm_bias", f"{theirs}mixer.lkp.norm.bias"))
    rules += batch_norm_rules(f"{PARAMS}{ours}ls/bn/", f"{STATISTICS}{ours}ls/bn/", f"{theirs}mixer.bn.")
    rules.append(Rule(f"{PARAMS}{ours}attn/offset_table", f"{theirs}mixer.m.attention_biases"))
    return tuple(rules)


NETWORK = network_rules()


def size_of(weights: Mapping[str, np.ndarray]) -> LSNetSize:
    """The size that the tensors tell; `UserError` if they lack what tells it."""
    stem = found(weights, f"{PARAMS}stem_4/conv/kernel", NETWORK, 4)
    widths = [stem.shape[-1]]
    widths += [found(weights, f"{PARAMS}stage_{stage}_1/conv/kernel", NETWORK, 4).shape[-1] for stage in (2, 3, 4)]
    depths = [
        len({path.split("/")[2] for path in weights if path.startswith(f"{PARAMS}stage_{stage}_") and "/ffn/" in path})
        for stage in (1, 2, 3, 4)
    ]
    attention = f"{PARAMS}stage_4_3/attn/"  # the first block that attends
    table = found(weights, f"{attention}offset_table", NETWORK, 2)
    both = found(weights, f"{attention}dw/conv/kernel", NETWORK, 4).shape[-1]
    heads, side = table.shape[0], round(table.shape[1] ** 0.5)
    return LSNetSize(tuple(widths), tuple(depths), heads, both // heads, side)


def checked(weights: Mapping[str, np.ndarray]) -> Description:
    """The description of a network that has everything and nothing else; otherwise a `UserError`."""
    size = size_of(weights)
    if min(size.widths) < 8:
        raise UserError(f"an LSNet of widths {size.widths} has no channels to share its kernels; this is another network")
    shapes = jax.eval_shape(LSNet(size).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    expected = {}
    for start, collection in ((PARAMS, "params"), (STATISTICS, "batch_stats")):
        leaves = jax.tree_util.tree_leaves_with_path(shapes[collection])
        expected |= {start + "/".join(key.key for key in path): leaf.shape for path, leaf in leaves}
    check_shapes(weights, expected, NETWORK)
    return Description(size.widths[-1], None, None, stages=size.depths)


def read(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.read`."""
    weights, entries = import_arrays(arrays, NETWORK, LEFT_OUT)
    return weights, entries, checked(weights)


def write(weights: Mapping[str, np.ndarray]) -> tuple[Arrays, list[Entry], Description]:
    """See `Family.write`. The result lacks the classifier, the counters and the numbers of offsets."""
    own = {path: array for path, array in weights.items() if path.startswith((PARAMS, STATISTICS))}
    description = checked(own)
    return *export_arrays(own, NETWORK), description


def fits(names: Collection[str]) -> bool:
    return any(MARK.match(name) for name in names)


LSNET = Family("lsnet", "part", "LSNet of ImageNet, jameslahm/lsnet", fits, read, write)

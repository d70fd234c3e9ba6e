"""Compares this package with the official PyTorch implementations, with a PyTorch checkpoint of your own, or with transformers.

    python launch/compare_numerics.py --reference FILE [FILE ...]           files of third_party/reference, or others like them
    python launch/compare_numerics.py --reference FILE [FILE ...] --json    the same as one JSON document on stdout
    python launch/compare_numerics.py --checkpoint=transformer_120.pth --method=transreid --images=DIR --torch-features=y.npz
    python launch/compare_numerics.py --against=transformers [--source=openai/clip-vit-base-patch16] [--dtype=bfloat16]

A reference file says itself what it holds; an output may be off by 2e-6 of the largest reference value or 30 times the official
code's own rounding error. With --checkpoint, the pictures in DIR are embedded with the checkpoint's weights and compared with the
features that PyTorch computed: y.npz holds "names" (files below DIR), "features" [N, D] and, for models with cameras, "camids"
(docs/porting.md has the script that saves it). What the tensors tell of the network is set by itself; the rest is an argument of
the method's config: --method=transreid:stride=12.

With --against=transformers, both towers of Hugging Face's CLIP in PyTorch (pip install torch) are run beside those of this
package, on the same random pictures and texts. --source is a hub id, a folder, or "random", which needs no download and may name
the network: random:vit_b16. Everything must agree within 1e-5 of its largest value, in bfloat16 within 2e-2 (logits: of the
temperature).

The exit status is 0 if everything agrees, otherwise 1.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import traceback

import command
from absl import flags

REFERENCE = flags.DEFINE_multi_string(
    "reference", [], "reference files; further ones may follow as plain words: --reference *.npz"
)
PRODUCTS = flags.DEFINE_enum(
    "products", "float64", ["float64", "float32"], "how --reference sums matrix products: exactly, or as a run does"
)
JSON = flags.DEFINE_boolean("json", False, "print one JSON document and nothing else")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "PyTorch checkpoint: file, folder or hub id, as for launch/port_weights.py")
METHOD = flags.DEFINE_string("method", None, "the checkpoint's method, with config arguments after a colon: transreid:stride=12")
IMAGES = flags.DEFINE_string("images", None, "folder that the names in --torch-features are relative to")
FEATURES = flags.DEFINE_string("torch-features", None, ".npz file with names, features and, for models with cameras, camids")
TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "allowed difference, as a share of the largest stored feature value", 0.0)
AGAINST = flags.DEFINE_enum("against", None, ["transformers"], "PyTorch package to run beside this one, with CLIP's towers")
SOURCE = flags.DEFINE_string("source", "random", "with --against: hub id, folder, or random[:network] for random weights")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "with --against: type of this package's products")
SINGLE = {"checkpoint": CHECKPOINT, "method": METHOD, "images": IMAGES, "torch-features": FEATURES}


def main(words: list[str]) -> int:
    given = [name for name, flag in SINGLE.items() if flag.value]
    if AGAINST.value:
        if others := [f"--{name}" for name in given] + ["--reference"] * bool(REFERENCE.value) + words:
            command.fail(f"--against and {others[0]} do not go together; give one", command.USAGE)
        return compare_transformers()
    for flag in (SOURCE, DTYPE):
        if flag.present:
            command.fail(f"--{flag.name} goes with --against=transformers; give that too", command.USAGE)
    if REFERENCE.value and given:
        command.fail(f"--reference and --{given[0]} are two ways to use this command; give one", command.USAGE)
    if REFERENCE.value:
        return compare_references([*REFERENCE.value, *words])
    if words:
        command.fail(f"unexpected argument '{words[0]}'; flags look like --name=value", command.USAGE)
    if missing := [f"--{name}" for name in SINGLE if name not in given]:
        text = f"{', '.join(missing)} missing" if given else "name reference files (--reference FILE) or a --checkpoint"
        command.fail(f"{text}; --help tells more", command.USAGE)
    return compare_checkpoint()


def compare_references(paths: list[str]) -> int:
    """Runs every file, prints as it goes, and returns the exit status. A file that cannot be run stops none of the others."""
    from occreid_jax import numerics
    from occreid_jax.errors import UserError

    reports = []
    for path in paths:
        try:
            result = numerics.compare_file(path, PRODUCTS.value)
        except Exception as error:
            message = " ".join(str(error).split())
            if not isinstance(error, UserError):
                traceback.print_exc()
                message = f"{path}: this program failed on it, see above ({type(error).__name__}: {message})"
            print(f"error: {message}", file=sys.stderr, flush=True)
            reports.append({"file": path, "kind": None, "passed": False, "error": message, "outputs": []})
            continue
        if not JSON.value:
            print_result(path, result)
        reports.append(report(path, result))
    outputs = [output for each in reports for output in each["outputs"]]
    agree, good = sum(output["passed"] for output in outputs), sum(each["passed"] for each in reports)
    if JSON.value:
        print(json.dumps({"passed": good == len(reports), "files": reports}, indent=2, allow_nan=False))
    else:
        print(f"total: {agree} of {len(outputs)} outputs agree, {good} of {len(reports)} files passed")
    return 0 if good == len(reports) else command.MISTAKE


def print_result(path: str, result) -> None:
    """A header, one aligned line for each output, and the worst of them."""
    print(f"{path}: {result.kind}")
    width = max(len(comparison.key) for comparison in result.comparisons)
    print(f"  {'output':<{width}}  {'error':>9}  {'relative':>9}  {'x noise':>8}  verdict")
    for each in result.comparisons:
        values = f"{shown(each.error, '.2e'):>9}  {shown(each.relative, '.2e'):>9}  {shown(each.noise_multiple, '.1f'):>8}"
        print(f"  {each.key:<{width}}  {values}  {each.verdict}")
    noise = "no rounding errors stored" if math.isnan(result.worst_noise) else f"{result.worst_noise:.1f} x noise at worst"
    share = max(each.used for each in result.comparisons)
    failed = sum(not each.passed for each in result.comparisons)
    word = f"{failed} of {len(result.comparisons)} failed" if failed else f"all {len(result.comparisons)} agree"
    print(f"  {word}, {noise}, {shown(100 * share, '.0f')} % of what is allowed at most\n", flush=True)


def report(path: str, result) -> dict:
    """A result for JSON; what is no finite number becomes null."""
    outputs = [
        {
            "key": each.key,
            "passed": each.passed,
            "error": finite(each.error),
            "relative": finite(each.relative),
            "noise_multiple": finite(each.noise_multiple),
            "allowed": finite(each.allowed),
            "reason": each.reason,
            "problem": each.problem,
        }
        for each in result.comparisons
    ]
    worst = finite(result.worst_noise)
    return {"file": path, "kind": result.kind, "passed": result.passed, "worst_noise_multiple": worst, "outputs": outputs}


def shown(value: float, form: str) -> str:
    """A number in ``form``, or a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "-"


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def compare_checkpoint() -> int:
    """Embeds the user's pictures with the user's weights, prints how the features agree, and returns the exit status."""
    import importlib

    from occreid_jax import methods
    from occreid_jax.errors import UserError
    from occreid_jax.numerics import checkpoint
    from occreid_jax.weights.port import port
    from occreid_jax.weights.sources import read_source

    name, _, argument = METHOD.value.partition(":")
    if name not in methods.NAMES:
        raise UserError(f"--method={name}: unknown method; known: {', '.join(sorted(methods.NAMES))}")
    stored = checkpoint.read_torch_features(FEATURES.value)
    arguments = ["dataset=folder", *(item for item in argument.split(",") if item)]
    ported = port(read_source(CHECKPOINT.value)[0])
    try:
        get_config = importlib.import_module(f"configs.{name}").get_config
        found = checkpoint.config_arguments(get_config(",".join(arguments)), ported, {x.partition("=")[0] for x in arguments})
        config = get_config(",".join(arguments + found))
    except ValueError as error:
        raise UserError(f"--method={METHOD.value}: {error}") from error
    images = checkpoint.read_images(IMAGES.value, stored.names, tuple(config.data.image_size))
    found = checkpoint.compare_features(config, ported, stored, images)
    passed = found.relative <= TOLERANCE.value
    if JSON.value:
        print(json.dumps({"passed": passed, "tolerance": TOLERANCE.value, **dataclasses.asdict(found)}, indent=2))
        return 0 if passed else command.MISTAKE
    form = "both normalised" if found.normalised else "as they are"
    print(f"{CHECKPOINT.value}: {ported.family}, {ported.description}")
    print(f"{found.images} pictures, features of {found.dimensions} numbers, compared {form}")
    print(f"  largest difference  {found.error:.2e}, {found.relative:.2e} of the largest value ({found.worst})")
    print(f"  least cosine        {found.cosine:.8f}")
    if passed:
        print(f"agree within {TOLERANCE.value:g}")
        return 0
    print(f"DIFFER by more than {TOLERANCE.value:g}; docs/porting.md lists what to look at first")
    return command.MISTAKE


def compare_transformers() -> int:
    """Runs CLIP's towers in PyTorch and here, prints how every block agrees, and returns the exit status."""
    from occreid_jax.numerics import transformers_clip

    description, found = transformers_clip.compare(SOURCE.value, DTYPE.value)
    allowed = transformers_clip.ALLOWED[DTYPE.value]
    passed = all(each.relative <= allowed for each in found)  # a nan is not
    if JSON.value:
        outputs = [
            {"name": each.name, "error": finite(each.error), "relative": finite(each.relative), "largest": finite(each.largest)}
            for each in found
        ]
        facts = {"passed": passed, "source": SOURCE.value, "dtype": DTYPE.value, "allowed": allowed, "outputs": outputs}
        print(json.dumps(facts, indent=2, allow_nan=False))
        return 0 if passed else command.MISTAKE
    print(f"{SOURCE.value}: {description}; PyTorch in float32, products here in {DTYPE.value}")
    width = max(len(each.name) for each in found)
    print(f"  {'output':<{width}}  {'error':>9}  {'relative':>9}")
    for each in found:
        mark = "" if each.relative <= allowed else "  DIFFERS"
        print(f"  {each.name:<{width}}  {shown(each.error, '.2e'):>9}  {shown(each.relative, '.2e'):>9}{mark}")
    worst = max(found, key=lambda each: math.inf if math.isnan(each.relative) else each.relative)
    word = "agree" if passed else "DIFFER: not all"
    print(f"{word} within {allowed:g} of the largest value; worst: {worst.name}, {shown(worst.relative, '.2e')}")
    return 0 if passed else command.MISTAKE


if __name__ == "__main__":
    command.run(main, words=True)

"""Brings weights from elsewhere under this project's names, or back under those of PyTorch. Every tensor is accounted for.

    python launch/port_weights.py --source=jx_vit_base_p16_224-80ecf9dd.pth --out=weights/vit_base
    python launch/port_weights.py --source=google/vit-base-patch16-224-in21k --out=weights/vit_base_in21k --grid=21x10
    python launch/port_weights.py --source=ViT-B-16.pt --out=weights/clip_vit_b16
    python launch/port_weights.py --source=openai/clip-vit-base-patch16 --out=weights/clip_vit_b16_256x128 --grid=16x8
    python launch/port_weights.py --source=vit_transreid_duke.pth --out=weights/transreid_duke
    python launch/port_weights.py --source=dpm/transformer_150.pth --out=weights/dpm_duke
    python launch/port_weights.py --source=transformermemory_120.pth --bank=dpeformer --out=weights/dpeformer_bank
    python launch/port_weights.py --source=runs/transreid-market1501 --to=pytorch --out=exported

The source is a file (.safetensors, .pth, .pt, .bin, .tar, .npz), a folder with one in it, or the id of a model on the Hugging
Face hub; known are ImageNet encoders (timm, DeiT, Hugging Face, Google), CLIP with its text tower (OpenAI's archives, which are
read and not executed, open_clip, Hugging Face) or without (timm), and the checkpoints of TransReID, of its ViT baseline, of
CLIP-ReID, of DPM and of both networks of SPT. Writes weights.safetensors, which config.init.weights takes if the method's network
is of that kind, and port.json, the table that is printed here. SPT's selection network is a part of a model: named after other
weights, with a comma between, it replaces that network alone. Positions keep their grid and are resized when the weights are
loaded, unless --grid asks for another one at once: of an encoder, of CLIP's image ViT, or of the attention pool of CLIP's ResNet.

The trainings of FED and DPEFormer leave their memory bank in a file of its own, one tensor without a name: --bank says whose it
is. It is a part of a model as well, and leaves again as such a file (model.pth); that of a run does with --to=pytorch --bank.

With --to=pytorch the source is a folder or file that this command wrote, or the run folder of a training; model.safetensors
and model.pth are written. They lack num_batches_tracked and what no forward pass reads; the official loaders keep their own.
"""

from __future__ import annotations

import command
from absl import flags

SOURCE = flags.DEFINE_string("source", None, "file, folder or hub id (owner/name) of the weights")
OUT = flags.DEFINE_string("out", None, "folder to write to: new, empty, or written by this command before")
TO = flags.DEFINE_enum("to", "occreid_jax", ["occreid_jax", "pytorch"], "whose names to write")
GRID = flags.DEFINE_string("grid", None, "resize positions, of an encoder or of CLIP's image tower, to ROWSxCOLUMNS: 21x10")
BANK = flags.DEFINE_enum("bank", None, ["fed", "dpeformer"], "the source is a memory bank of this method, or a run that has one")
flags.mark_flag_as_required("source")
flags.mark_flag_as_required("out")


def main() -> None:
    import re
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.train.log import Reporter

    reporter, out, grid = Reporter(), Path(OUT.value), None
    if GRID.value is not None:
        match = re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", GRID.value)
        if match is None:
            raise UserError(f"--grid={GRID.value}: it must be ROWSxCOLUMNS of patches, for example 21x10")
        grid = int(match[1]), int(match[2])
    if TO.value == "occreid_jax":
        bring(reporter, SOURCE.value, out, grid, BANK.value)
    elif grid is not None:
        raise UserError("--grid has no effect with --to=pytorch; leave it out")
    else:
        write_back(reporter, Path(SOURCE.value), out, BANK.value)


def bring(reporter, source: str, out, grid, bank: str | None) -> None:
    """Weights from elsewhere -> ``out``."""
    from occreid_jax.errors import UserError
    from occreid_jax.weights import naming, port
    from occreid_jax.weights.families import banks, open_family
    from occreid_jax.weights.sources import read_source

    port.check_free(out, port.PORTED_FILES)  # before anything large is read or fetched
    arrays, origin = read_source(source, banks.name_of(bank) if bank else "")
    try:
        ported = port.port(arrays, grid)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if bank and ported.family != banks.name_of(bank):
        raise UserError(f"{source}: {open_family(ported.family).title}, and no memory bank of {bank}; leave --bank={bank} out")
    table(reporter, [(entry.name, entry.shape, fate(entry)) for entry in ported.entries])
    path = port.write_ported(out, ported, origin)
    if ported.prefix:
        reporter.line(f"taken off, since it stands before every name: {ported.prefix}")
    if ported.description.grid is not None:
        rows, columns = ported.description.grid
        resized = any(entry.fate == naming.RESIZED for entry in ported.entries)
        state = "resized" if resized else "as they are in the source"
        reporter.line(f"positions: {rows}x{columns}, {state}; another grid gets them resized when the weights are loaded")
    if ported.kind == "clip":
        reporter.line("not in the tensors: the number of heads, and the activation (OpenAI: QuickGELU; LAION: mostly GELU)")
    fates = [entry.fate for entry in ported.entries]
    counts = ", ".join(f"{fates.count(word)} {word}" for word in (naming.USED, naming.RESIZED, naming.LEFT_OUT))
    reporter.line(f"{open_family(ported.family).title}: {ported.description}")
    reporter.line(f"written: {path} ({len(fates)} tensors: {counts})")


def write_back(reporter, source, out, bank: str | None) -> None:
    """Weights that were ported, or those of a run -> PyTorch's names in ``out``."""
    from occreid_jax.errors import UserError
    from occreid_jax.weights import port
    from occreid_jax.weights.families import banks, open_family

    port.check_free(out, port.EXPORTED_FILES)
    if (source / "config.json").is_file():
        weights, family = read_run(source)
        family = bank_of(source, family, bank) if bank else family
    elif bank:
        raise UserError("--bank with --to=pytorch takes the bank of a run; of ported weights leave it out")
    elif source.exists():
        weights, metadata = port.read_ported(source)
        family = open_family(metadata.get("family", ""))
    else:
        raise UserError(f"{source}: no such file or folder; give ported weights or the run folder of a training")
    try:
        arrays, entries, description = family.write(weights)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    table(reporter, [(entry.path, entry.shape, f"-> {entry.name}") for entry in entries])
    paths = port.write_exported(out, arrays, alone=family.name in map(banks.name_of, banks.PATHS))
    reporter.line(f"{family.title}: {description}")
    reporter.line(f"written: {' and '.join(map(str, paths))} ({len(arrays)} tensors)")


def read_run(workdir):
    """Parameters of the last checkpoint of a run, and the family that its method is written as."""
    from occreid_jax.train import start
    from occreid_jax.train.reopen import read_config
    from occreid_jax.weights.families import for_method
    from occreid_jax.weights.trees import flatten

    family = for_method(read_config(workdir).method.name)
    stored = start.read_run(workdir)
    trees = {"params": stored["params"], "extra": stored["extra"] or {}}
    return flatten(trees), family


def bank_of(workdir, family, bank: str):
    """The family of the memory banks of a run whose models are of ``family``."""
    from occreid_jax.errors import UserError
    from occreid_jax.weights.families import banks, open_family

    if family.name != bank:
        raise UserError(f"{workdir}: a run of another method, whose models are those of {family.title}; leave --bank={bank} out")
    return open_family(banks.name_of(bank))


def fate(entry) -> str:
    """What became of a tensor, for its line."""
    from occreid_jax.weights import naming

    if entry.fate == naming.LEFT_OUT:
        return f"left out: {entry.note}"
    arrow = "->" if entry.fate == naming.USED else f"{entry.fate} ->"
    return f"{arrow} {entry.path}" + (f" ({entry.note})" if entry.note else "")


def table(reporter, lines) -> None:
    """Name, shape and fate of every tensor, in columns."""
    rows = [(name, "x".join(map(str, shape)) or "scalar", text) for name, shape, text in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, shape, text in rows:
        reporter.line(f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {text}")


if __name__ == "__main__":
    command.run(main)

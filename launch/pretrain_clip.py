"""Pretrains the tiny CLIP, measures what it knows of people it has never seen, and writes the weights that ship.

    python launch/pretrain_clip.py                              into occreid_jax/assets/tiny_clip
    python launch/pretrain_clip.py --config=configs/clip_pretraining.py:grid=fine    into tiny_clip_fine beside it
    python launch/pretrain_clip.py --out=DIR --config.seed=1    another one, elsewhere
    python launch/pretrain_clip.py --measure                    trains nothing and measures the weights that ship

The training is that of launch/train.py with the same config: the same command again goes on where the last one stopped. Then the
parameters are rounded to float16, as they are stored, and pictures of held-out people at held-out cameras are compared with
sentences. weights.safetensors and card.json (command, seed, cost, figures) are written at the end. All pictures are rendered; the
figures are synthetic.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config(str(command.ROOT / "configs" / "clip_pretraining.py"))
WORKDIR = flags.DEFINE_string("workdir", None, "run folder (default: runs/<method>-<dataset>)")
OUT = flags.DEFINE_string("out", None, "folder to write to (default: the package's own asset, which is replaced)")
MEASURE = flags.DEFINE_bool("measure", False, "only measure the weights that ship for the config's grid")


def main() -> None:
    import time
    from pathlib import Path

    started, used = time.monotonic(), time.process_time()
    from occreid_jax import distributed
    from occreid_jax.assets import FOLDER
    from occreid_jax.errors import UserError
    from occreid_jax.evaluation import zero_shot
    from occreid_jax.train.log import Reporter
    from occreid_jax.train.loop import Stopped, open_trainer
    from occreid_jax.weights.tiny_clip import ASSETS, FAMILY, PARTS, halved, write_tiny_clip

    distributed.initialise()
    config = CONFIG.value
    if config.method.name != "clip_pretraining":
        raise UserError(f"--config: {config.method.name} is no pretraining of a CLIP; leave --config out")
    workdir = Path(WORKDIR.value or command.default_workdir(config))
    out = Path(OUT.value or FOLDER / ASSETS.get(config.method.backbone, FAMILY))
    reporter = Reporter()
    if MEASURE.value:
        return measure_shipped(config, reporter)
    trainer = open_trainer(config, workdir, reporter)
    setup = trainer.setup
    before = trainer.checkpoints.last_step() or 0
    try:
        evaluation = trainer.run()
    except Stopped as stopped:
        command.fail(str(stopped), 128 + stopped.signal)
    params = halved({name: trainer.state.params[name] for name in PARTS})
    figures = measure(setup, params)
    cost = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time() - used, 1)}
    if before:
        cost["note"] = f"from step {before} on, where an earlier command had stopped"
    if distributed.is_lead():
        card = describe(setup, trainer.plan, cost, evaluation, figures)
        path = write_tiny_clip(out, params, setup.method.size, setup.method.visual.grid, card)
        reporter.line(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    for line in zero_shot.lines(figures):
        reporter.line(line)
    reporter.line(f"{cost['seconds']:.0f} s, {cost['cpu_seconds']:.0f} CPU-seconds")
    reporter.line(evaluation.summary)


def measure_shipped(config, reporter) -> None:
    """Prints what the weights that ship know, and how well the text tower tells sentences of one fact apart."""
    from occreid_jax import synthetic
    from occreid_jax.evaluation import zero_shot
    from occreid_jax.train.setup import open_setup
    from occreid_jax.train.start import initial_model
    from occreid_jax.weights.tiny_clip import ASSETS, FAMILY

    config.init.weights = ASSETS.get(config.method.backbone, FAMILY)
    setup = open_setup(config, reporter)
    params, _ = initial_model(setup.method, config)
    for line in zero_shot.lines(measure(setup, params)):
        reporter.line(line)
    told = {}
    for fact, values in synthetic.fact_prompts().items():
        told[fact] = zero_shot.likeness(embed_texts(setup.method, params, list(values.values())))
    reporter.line("mean cosine between the sentences of a fact: " + ", ".join(f"{fact} {x:.3f}" for fact, x in told.items()))


def measure(setup, params) -> dict:
    """Captions and attributes of the held-out people, told from pictures that show them whole and from occluded ones."""
    import numpy as np

    from occreid_jax import synthetic
    from occreid_jax.data.captions import read_captions
    from occreid_jax.data.parsing import read_truth
    from occreid_jax.evaluation import zero_shot
    from occreid_jax.evaluation.embed import embed_split

    method, config = setup.method, setup.config
    classes = {}
    for name, values in synthetic.attribute_prompts().items():
        features = embed_texts(method, params, [text for texts in values.values() for text in texts])
        classes[name] = list(values), zero_shot.class_features(features, [len(texts) for texts in values.values()])
    figures = {}
    for kind, role in (("whole", "gallery"), ("occluded", "query")):
        columns = setup.columns(role, ("image",), config.data.test_filter)
        images = embed_split(method, params, {}, columns, role, config.evaluation.batch_size, setup.devices)
        occluded = np.array([record.occlusion != "none" for record in read_truth(setup.dataset, role)])
        chosen = np.flatnonzero(occluded == (kind == "occluded"))
        everyone = read_captions(setup.dataset, role)
        sentences = {pid: synthetic.caption_within(each.attributes)
                     for pid, each in zip(getattr(setup.dataset, role).pids.tolist(), everyone, strict=True)}  # fmt: skip
        order = {pid: number for number, pid in enumerate(sentences)}
        own = np.array([order[pid] for pid in getattr(setup.dataset, role).pids[chosen].tolist()], int)
        captions = embed_texts(method, params, list(sentences.values()))
        entry = {"captions": zero_shot.caption_retrieval(images[chosen], captions, own), "attributes": {}}
        for name, (values, features) in classes.items():
            told = [everyone[row].occluder if name == "occluder" else everyone[row].attributes[name] for row in chosen]
            known = np.array([value in values for value in told], bool)  # not those who carry no bag
            if known.any():
                labels = np.array([values.index(value) for value in told if value in values])
                entry["attributes"][name] = zero_shot.attribute_accuracy(images[chosen][known], features, labels)
        figures[kind] = entry
    return figures


def embed_texts(method, params, texts: list[str]):
    """Unit features float32 [texts, E]."""
    import jax
    import numpy as np

    from occreid_jax.nn.prompt import prefix_length
    from occreid_jax.vocabulary import tiny_vocabulary

    vocabulary = tiny_vocabulary()
    ids = vocabulary.tokenize(texts)
    rows = vocabulary.rows(ids)[:, : prefix_length(ids)]
    return np.asarray(jax.jit(method.text_features)(params, rows))


def describe(setup, plan, cost: dict, evaluation, figures: dict) -> dict:
    """What card.json holds."""
    import platform
    import sys

    import flax
    import jax
    import numpy as np

    import occreid_jax
    from occreid_jax import config as configuration
    from occreid_jax import synthetic

    config, method = setup.config, setup.method
    roles = {role: getattr(setup.dataset, role) for role in ("train", "query", "gallery")}
    names = ("mAP", "rank1", "rank5", "rank10", "mINP")
    return {
        "what": "a small CLIP, pretrained on rendered pictures and generated sentences only; all figures are synthetic",
        "command": " ".join(["python", "launch/pretrain_clip.py", *shown(sys.argv[1:])]),
        "starts_from": config.init.weights,
        "seed": config.seed,
        "synthetic_seed": config.data.synthetic_seed,
        "versions": {
            "occreid_jax": occreid_jax.__version__, "renderer": synthetic.VERSION, "jax": jax.__version__,
            "flax": flax.__version__, "numpy": np.__version__, "python": platform.python_version(),
        },
        "device": f"{setup.devices.count} x {jax.devices()[0].device_kind}, {np.dtype(method.dtype).name}",
        "data": {
            role: {"images": len(split), "identities": len(np.unique(split.pids)), "cameras": len(np.unique(split.camids))}
            for role, split in roles.items()
        },
        "steps": plan.steps,
        "pictures_seen": sum(stage.steps * stage.batch_size for stage in plan.stages),
        **cost,
        "zero_shot": figures,
        "picture_retrieval": {"protocol": evaluation.results["protocol"], **{key: evaluation.results[key] for key in names},
                              "untrained_mAP": evaluation.results["untrained_mAP"]},
        "method": configuration.to_dict(config.method),
        "stages": configuration.to_dict(config.stages),
    }  # fmt: skip


def shown(arguments: list[str]) -> list[str]:
    """A command's arguments without those that only say where its files lie."""
    return [argument for argument in arguments if not argument.lstrip("-").startswith(("workdir", "out", "config.data.root"))]


if __name__ == "__main__":
    command.run(main)

"""From a config to everything a command works on: the dataset, its tables, the method and the devices."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np

from occreid_jax import cameras, distributed, methods
from occreid_jax import config as configuration
from occreid_jax.data import doctor, labels, occluders, readers, sampler
from occreid_jax.data import table as tables
from occreid_jax.data.fingerprint import fingerprint
from occreid_jax.distributed import Devices
from occreid_jax.errors import UserError, listed
from occreid_jax.files import at_home
from occreid_jax.methods.locations import MEAN
from occreid_jax.passes import run_pass
from occreid_jax.train.log import Reporter
from occreid_jax.train.rendered import PROMPTS, caption_table, fact_table, prompt_tables, rendered_library
from occreid_jax.types import Dataset, Meta, Method, Split

TABLES = ("image", "parts", "parsed", "truth", "caption", "facts", MEAN)  # what can be had per picture


@dataclasses.dataclass
class Setup:
    """A method and its data, opened. Tables are decoded on first use and kept open."""

    config: ml_collections.ConfigDict
    reporter: Reporter
    devices: Devices
    dataset: Dataset
    meta: Meta
    method: Method
    opened: dict[tuple[str, str, str], np.ndarray] = dataclasses.field(default_factory=dict)
    library: occluders.Library | None = None
    parsing: labels.Parsing | None = None  # where body-part labels come from, where the method asks which pictures have some
    cameras: cameras.Cameras = cameras.Cameras()  # what the network is told of every picture's camera

    @property
    def cache(self) -> Path:
        return table_cache(self.config)

    @functools.cached_property
    def bits(self) -> int:
        """How many bits of the dataset's 16-bit files are used, see `tables.bits`."""
        return tables.bits(self.dataset, self.cache)

    @property
    def labels(self) -> np.ndarray:
        """Training labels int32 [N]: identities numbered in ascending order."""
        return sampler.training_labels(self.dataset.train.pids)

    def camids(self, role: str) -> np.ndarray:
        """What the network is told of the camera of every picture of a split, int32 [N], see `occreid_jax.cameras`."""
        return self.cameras.rows(getattr(self.dataset, role), role)

    def columns(self, role: str, inputs: tuple[str, ...], resize_filter: str) -> dict[str, np.ndarray]:
        """The tables of one split that ``inputs`` names, and `camids`: name -> array [N, ...].

        Names that are no table of pictures are left out: `Method.prepare` may provide them under ``extra["tables"]``.
        """
        columns = {"camid": self.camids(role)}
        return columns | {name: self.table(role, name, resize_filter) for name in inputs if name in TABLES}

    def table(self, role: str, name: str, resize_filter: str) -> np.ndarray:
        """One table of a split, opened once."""
        key = (role, name, resize_filter if name == "image" else "")
        if key not in self.opened:
            self.opened[key] = self.open_table(role, name, resize_filter)
        return self.opened[key]

    def shared(self, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The tables that ``Stage.shared`` names, of one kind: ``occluders`` uint8 [K, S, S * 4] and ``occluder_sides`` int32
        [K, 2], or the sentences of `prompt_tables`.

        The occluders are those of the library in ``config.data.occluders``, or of the rendered one, which is made on first use.
        Raises ValueError for another name, `UserError` if the library cannot be used.
        """
        if unknown := [name for name in names if name not in (*occluders.TABLES, *PROMPTS)]:
            raise ValueError(f"a stage shares the table '{unknown[0]}'; known: {', '.join((*occluders.TABLES, *PROMPTS))}")
        if not names:
            return {}
        tables = prompt_tables() if set(names) <= set(PROMPTS) else self.occluder_tables()
        return {name: tables[name] for name in names}

    def occluder_tables(self) -> dict[str, np.ndarray]:
        """`occluders.TABLES` of the library, which is opened once."""
        if self.library is None:
            data = self.config.data
            folder, people = data.get("occluders", ""), data.get("occluder_people", 0)  # older runs have none
            frames = data.get("occluder_frames", False)
            self.library = (
                occluders.read_library(folder)
                if folder else rendered_library(self.cache, data.synthetic_seed, self.reporter, people, frames)
            )  # fmt: skip
            if frames and "cutout" in self.library.kinds:
                raise UserError(
                    f"{folder} holds cut-outs, and this config lays whole frames over pictures, in which occluders keep their "
                    "place; make it with launch/prepare_data.py occluders --from=folder --kind=overlay"
                )
            self.reporter.line(f"occluders: {len(self.library.sides):,} {f'from {folder}' if folder else self.drawn}")
        return dict(zip(occluders.TABLES, (self.library.table, self.library.sides), strict=True))

    def location_mean(self, when: str) -> np.ndarray:
        """float32 [h, w]: the mean over the training pictures of what a perfect localisation gives, `Method.true_location_at`."""
        if not len(self.dataset.train):
            raise UserError(
                f"{self.dataset.name} as opened here has no training pictures, of which the source 'constant' is the mean; set "
                "config.method.location to learned, random or truth"
            )
        if (key := ("train", f"{MEAN}, {when}", "")) in self.opened:
            return self.opened[key]
        located = jax.jit(lambda parts: self.method.true_location_at(parts, when), out_shardings=self.devices.replicated)
        columns = {"truth": self.table("train", "truth", "")}
        maps = run_pass(lambda batch: located(batch["truth"]), columns, self.config.evaluation.batch_size, self.devices)
        self.opened[key] = maps.mean(axis=0, dtype=np.float64).astype(np.float32)
        return self.opened[key]

    def without_labels(self) -> list[str]:
        """A sentence for every split with pictures that have no body-part labels, where the method asks for labels."""
        told = []
        for role, names in self.unparsed().items():
            how = f"config.method.unparsed={self.config.method.get('unparsed', 'error')}"
            count = f"{len(names):,} of {len(getattr(self.dataset, role)):,} {role} pictures"
            told.append(f"{count} have no body-part labels ({how}): {listed(names, 3)}")
        return told

    def unparsed(self) -> dict[str, list[str]]:
        """Names of the pictures without body-part labels by role, where the method asks for labels; no empty lists."""
        if self.parsing is None:
            return {}
        splits = {role: (getattr(self.dataset, role).names, self.parsing.parsed(role)) for role in labels.ROLES}
        absent = {role: [name for name, has in zip(*each, strict=True) if not has] for role, each in splits.items()}
        return {role: names for role, names in absent.items() if names}

    @property
    def drawn(self) -> str:
        """What the rendered library is, in words: on photographs nobody should take it for the papers' objects."""
        people = self.config.data.get("occluder_people", 0)
        if self.config.data.get("occluder_frames", False):
            told = "rendered objects and people in whole frames"
            return told if self.dataset.truth is not None else f"{told}; config.data.occluders names photographs instead"
        told = f"rendered objects and people ({people} people)" if people else "rendered objects"
        if self.dataset.truth is None:
            return f"{told}; config.data.occluders names cut-outs of photographs instead (docs/datasets.md)"
        return f"{told}, as the pictures are"

    def evaluation_columns(self, selection: bool = False) -> dict[str, dict[str, np.ndarray]]:
        """What an evaluation reads: "query" and "gallery" -> tables. With ``selection``, where the dataset has ground truth, the
        body-part labels of the queries beside them, under ``truth``, and those of "train"."""
        inputs, resize_filter = tuple(self.method.evaluation_inputs), self.config.data.test_filter
        columns = {role: self.columns(role, inputs, resize_filter) for role in ("query", "gallery")}
        if selection and self.dataset.truth is not None:
            columns["query"] |= {"truth": self.table("query", "truth", resize_filter)}
            if len(self.dataset.train):
                columns["train"] = {"truth": self.table("train", "truth", resize_filter)}
        return columns

    def open_table(self, role: str, name: str, resize_filter: str) -> np.ndarray:
        """Decodes a table, or opens the one that was decoded before."""
        split = getattr(self.dataset, role)
        if name == "caption":
            return caption_table(self.dataset, role, self.config.data.synthetic_seed)
        if name == "facts":
            return fact_table(self.dataset, role)
        parsing = self.parsing or labels.Parsing(labels.TRUTH, {each: (None,) * len(split) for each in labels.ROLES})
        if name == "parsed":
            return parsing.parsed(role)
        if name == "parts" and parsing.kind == labels.NONE:
            return np.broadcast_to(np.uint8(0), (len(split), *self.meta.image_size))
        if name == MEAN:
            mean = self.location_mean("train" if role == "train" else "test")
            return np.broadcast_to(mean, (len(split), *mean.shape))
        with self.reporter.task(f"reading {role} {name}", len(split)) as task:
            if name == "truth" or name == "parts" and parsing.kind == labels.TRUTH:
                table = tables.build_parts_table(self.dataset, role, self.meta.image_size, self.cache, task)
            elif name == "parts":
                files = parsing.paths[role], parsing.decode, parsing.words
                table = tables.build_labels_table(split, *files, self.meta.image_size, self.cache, task)
            else:
                table = tables.build_table(split, self.meta.image_size, resize_filter, self.cache, task, self.bits)
        for note in table.notes:
            self.reporter.line(f"{role}: {note}")
        return table.images


def data_root(config) -> Path:
    """Where datasets lie: ``config.data.root``, or OCCREID_DATA if that is set and the config has its default."""
    environment = os.environ.get("OCCREID_DATA", "")
    return Path(at_home(environment) if environment and config.data.root == "data" else config.data.root)


def table_cache(config) -> Path:
    """The folder of decoded tables."""
    return Path(config.data.cache or data_root(config) / ".tables")


def open_dataset(config, reporter: Reporter, need_train: bool = True) -> Dataset:
    """Opens the dataset of a config; a synthetic one is rendered first if it is not there. Without ``need_train`` it may be a
    test set alone."""
    data, root = config.data, data_root(config)
    if data.name != "synthetic":
        options = {"camera": data.camera} if data.name == "folder" else {}
        options |= {name: data[name] for name in ("protocol", "trial") if data.get(name)}  # readers refuse those they do not have
        return readers.open_dataset(data.name, root, need_train, **options)
    from occreid_jax import synthetic  # draws with OpenCV: real datasets do not need it

    folder = root / "synthetic" / f"{data.size}-{data.split}-{data.synthetic_seed}-v{synthetic.VERSION}"
    if distributed.is_lead():
        with reporter.task(f"rendering the embedded benchmark ({data.size}, {data.split})", 0) as task:
            try:
                synthetic.generate(folder, data.size, data.split, data.synthetic_seed, task)
            except ValueError as error:
                raise UserError(str(error)) from error
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror or error}); set config.data.root") from error
    distributed.barrier("rendered")
    return readers.open_dataset("synthetic", folder, need_train)


def open_setup(config, reporter: Reporter, meta: Meta | None = None) -> Setup:
    """Opens dataset, devices and method. ``meta`` is that of the training run when another dataset is evaluated."""
    configuration.validate(config)
    devices = distributed.devices(config.mesh.devices, **distributed.switches(config.mesh))
    if meta is None:
        # With a made-up dataset first: a wrong name of a method or a backbone is told before anything is read or rendered.
        methods.create(config, Meta(identities=2, cameras=2, image_size=tuple(config.data.image_size), images=2))
    training = meta is None
    dataset = open_dataset(config, reporter, need_train=training)
    meta = meta or training_meta(dataset.train, config)
    told, dataset = tell_cameras(config, dataset, meta)
    problems = doctor.problems(dataset, table_cache(config))
    for line in (*(f"note: {note}" for note in dataset.notes), *problems):
        reporter.line(line)
    dataset = dataclasses.replace(dataset, notes=(*dataset.notes, *problems))  # for the report
    method = methods.create(config, meta)
    parsing, dataset = find_parsing(method, dataset, training)
    check_truth(method, dataset, parsing, training)
    setup = Setup(config, reporter, devices, dataset, meta, method, parsing=parsing, cameras=told)
    for line in setup.without_labels():
        reporter.line(f"note: {line}")
    return setup


def asked_tables(method: Method, training: bool) -> set[str]:
    """Names of the tables that a method reads at test time and, with ``training``, in its stages."""
    return set(method.evaluation_inputs).union(*(stage.inputs for stage in method.stages() if training))


def find_parsing(method: Method, dataset: Dataset, training: bool) -> tuple[labels.Parsing | None, Dataset]:
    """Where the labels of a method that reads ``parsed`` come from, and ``dataset`` with that in its protocol: the kind of
    labels, and what the method does with test pictures that have none. None for other methods.

    Raises `UserError` if pictures have no labels and ``config.method.unparsed`` is "error".
    """
    if "parsed" not in asked_tables(method, training):
        return None, dataset
    data, choice = method.config.data, method.config.method.get("unparsed", "error")
    parsing = labels.find_labels(dataset, data.get("parsing", ""), data.get("parsing_format", "auto"))
    absent = {role: int((~parsing.parsed(role)).sum()) for role in labels.ROLES if role != "train" or training}
    if any(absent.values()) and choice == "error":
        told = ", ".join(f"{count:,} {role} pictures" for role, count in absent.items() if count)
        raise UserError(
            f"{dataset.name}: {told} have no body-part labels; name a folder of them with config.data.parsing "
            "(docs/datasets.md), or set config.method.unparsed to what to do without"
        )
    kinds = [parsing.kind] if parsing.kind != labels.NONE else []
    kinds += [choice] if absent["query"] or absent["gallery"] else []
    return parsing, dataclasses.replace(dataset, protocol=f"{dataset.protocol}+parsing={','.join(kinds)}")


def check_truth(method: Method, dataset: Dataset, parsing: labels.Parsing | None, training: bool) -> None:
    """Raises `UserError` if a method asks for ground truth, at test time or in ``training``, that a dataset does not have or that
    its settings replace by labels of others."""
    inputs, location = asked_tables(method, training), method.config.method.get("location", {})
    sources = {location.get(when, "learned") for when in (("train", "test") if training else ("test",))}
    asked = MEAN in inputs or "truth" in sources or ("parts" in inputs and parsing is None)
    if asked and parsing is not None and dataset.truth is not None and parsing.kind != labels.TRUTH:
        raise UserError("config.method.location asks for the renderer's labels and config.data.parsing for others; leave one out")
    if asked and dataset.truth is None:
        locates = method.localises is not None and "location" in method.config.method
        remedy = "set config.method.location to learned or random" if locates else "set config.method.person_mask=False"
        told = "has no body-part labels, which this config asks for: only synthetic sets have"
        raise UserError(f"{dataset.name} {told}; {remedy}, or take the embedded benchmark")


def training_meta(train: Split, config) -> Meta:
    """What a method must know of a training set."""
    numbers, network = cameras.training_cameras(train)
    return Meta(
        identities=len(np.unique(train.pids)),
        cameras=len(numbers),
        image_size=tuple(config.data.image_size),
        images=len(train),
        camera_numbers=numbers,
        camera_network=network,
        training_set=fingerprint(train),
    )


def tell_cameras(config, dataset: Dataset, meta: Meta) -> tuple[cameras.Cameras, Dataset]:
    """What the network of ``config``, trained on ``meta``, is told of cameras; ``dataset`` with that in its protocol and notes.

    Raises `UserError` if ``config.evaluation.camera`` asks for a camera that the network has no vector for.
    """
    embedding = bool(config.method.get("camera"))
    told = cameras.of_network(meta, embedding, config.evaluation.get("camera", "auto"))
    for role, split in cameras.tested(dataset):
        told.rows(split, role)  # what is wrong is told before anything is read
    notes = told.notes(dataset)
    if embedding and not told.numbers:
        notes = ("the training set has no cameras, so the method's camera embedding is off (config.method.camera)",)
    protocol = dataset.protocol + told.suffix(dataset)
    return told, dataclasses.replace(dataset, protocol=protocol, notes=(*dataset.notes, *notes))


def banner(setup: Setup, workdir: Path) -> Iterator[str]:
    """What is about to run, in words."""
    config, dataset = setup.config, setup.dataset
    where = "embedded synthetic benchmark" if config.data.name == "synthetic" else "dataset"
    yield f"{config.method.name} on the {where} {dataset.protocol}, seed {config.seed}; run folder {workdir}"
    for role in ("train", "query", "gallery"):
        split = getattr(dataset, role)
        identities = len(np.unique(split.pids))
        yield f"  {role:8s}{len(split):7,d} images  {identities:6,d} identities  {cameras.count(split) or 'no'} cameras"
    device = jax.devices()[0]
    process = f", process {jax.process_index() + 1} of {jax.process_count()}" if jax.process_count() > 1 else ""
    yield f"  {setup.devices.count} x {device.device_kind}, {np.dtype(setup.method.dtype).name} products{process}"

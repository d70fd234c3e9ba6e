"""What the tiny CLIP is pretrained on shares nothing with any benchmark: people, cameras, random streams, pictures."""

import dataclasses
import hashlib
import importlib
import itertools

import numpy as np
import pytest

from occreid_jax.assets import FOLDER
from occreid_jax.files import read_json
from occreid_jax.synthetic import DIFFICULTY, SIZES, cameras, generate, sample_people, stream

SEEDS = (0, 1, 2, 3)
BENCHMARKS = [name for name in SIZES if name != "pretrain"]
PRETRAIN = SIZES["pretrain"]
# By name: the package has functions of the same names.
MODULES = {
    name: importlib.import_module(f"occreid_jax.synthetic.{name}")
    for name in ("benchmark", "plan", "cameras", "people", "scenes")
}


def people(name: str, seed: int) -> dict[str, list]:
    """Everybody of a set, by namespace."""
    size, sources = SIZES[name], SIZES[name].sources
    difficulty = dataclasses.replace(DIFFICULTY, **dict(sources.changes))
    seed += sources.seed_offset
    return {
        sources.train: sample_people(seed, size.train_identities, sources.train, difficulty),
        sources.test: sample_people(seed, size.test_identities, sources.test, difficulty),
        "distractor": sample_people(seed, size.distractor_identities, "distractor", difficulty),
    }


@pytest.fixture(scope="module")
def pretraining():
    return {seed: people("pretrain", seed) for seed in (0, 1)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_person_of_a_benchmark_is_in_the_pretraining(name, pretraining):
    outfits = {p.outfit() for sets in pretraining.values() for group in sets.values() for p in group}
    shapes = {(p.stature, p.girth, p.legs) for sets in pretraining.values() for group in sets.values() for p in group}
    assert len(outfits) >= 2 * (PRETRAIN.train_identities + PRETRAIN.test_identities) - 10
    for seed in SEEDS:
        for group in people(name, seed).values():
            assert not outfits & {p.outfit() for p in group}
            assert not shapes & {(p.stature, p.girth, p.legs) for p in group}


def test_held_out_people_are_not_those_of_the_training_set(pretraining):
    for first, second in itertools.product(pretraining.values(), repeat=2):
        train, test = ({p.outfit() for p in group[name]} for group, name in ((first, "pretrain"), (second, "pretrain_test")))
        assert not train & test


def test_cameras_are_others():
    sources = PRETRAIN.sources
    names = (*sources.train_cameras, sources.test_cameras)
    assert len(set(names)) == 5 and sources.test_cameras not in sources.train_cameras
    ours = [camera for name in names for camera in cameras(sources.seed_offset, name)]
    theirs = [camera for seed in SEEDS for camera in cameras(seed, "benchmark")]

    def facts(camera):
        return camera.yaw, camera.tilt, camera.gain, camera.gamma, camera.saturation, camera.tint

    def views(found):
        return {hashlib.sha256(camera.background(np.random.default_rng(0), 32, 16)).digest() for camera in found}

    assert not {facts(camera) for camera in ours} & {facts(camera) for camera in theirs}
    assert len({facts(camera) for camera in ours}) == len(ours)
    assert not views(ours) & views(theirs)


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    """Every random stream that rendering asks for: set name -> {(seed, name, numbers)}; and the hashes of the pictures."""
    few = dict(height=128, width=64, test_identities=2, query_images=4, gallery_images=6)
    small = {"pretrain": dataclasses.replace(PRETRAIN, **few, train_identities=6, train_images=18)}
    others = dict(train_identities=3, train_images=9, distractor_identities=2, distractor_images=2, junk_images=1)
    for name in BENCHMARKS:
        small[name] = dataclasses.replace(SIZES[name], **few, **others)
    used, pictures = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for name, size in small.items():
            patch.setitem(SIZES, name, size)
            seen, files = set(), set()

            def record(seed, namespace, *numbers, seen=seen):
                seen.add((seed, namespace, numbers))
                return stream(seed, namespace, *numbers)

            for module in MODULES.values():
                patch.setattr(module, "stream", record)
            MODULES["scenes"].panorama.cache_clear()
            MODULES["cameras"]._grain.cache_clear()
            for seed, split in itertools.product((0, 1), ("occluded", "holistic")):
                out = generate(tmp_path_factory.mktemp("leak") / "set", name, split, seed)
                files |= {hashlib.sha256(path.read_bytes()).digest() for path in out.glob("*/*.jpg")}
            used[name], pictures[name] = seen, files
    return used, pictures


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_random_stream_and_no_seed_is_shared(name, streams):
    used, _ = streams
    assert len(used["pretrain"]) > 50 and len(used[name]) > 50
    assert not used["pretrain"] & used[name]
    assert not {seed for seed, _, _ in used["pretrain"]} & {seed for seed, _, _ in used[name]}
    namespaces = [{namespace for _, namespace, _ in used[each]} for each in ("pretrain", name)]
    assert not namespaces[0] & namespaces[1]


def test_seeds_of_the_pretraining_are_beyond_those_of_a_config():
    from occreid_jax.config import RANGES

    largest = dict((key, most) for key, _, most in RANGES)["data.synthetic_seed"]
    assert PRETRAIN.sources.seed_offset > largest


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_picture_is_shared(name, streams):
    _, pictures = streams
    assert len(pictures["pretrain"]) > 50 and not pictures["pretrain"] & pictures[name]


def test_all_that_ships_was_trained_on_that_set():
    cards = [read_json(path) for path in FOLDER.glob("*/card.json")]
    assert len(cards) == 2
    for card in cards:
        train = card["data"]["train"]
        assert (train["identities"], train["images"]) == (PRETRAIN.train_identities, PRETRAIN.train_images)
        assert train["cameras"] == 6 * len(PRETRAIN.sources.train_cameras) and "data.name" not in card["command"]

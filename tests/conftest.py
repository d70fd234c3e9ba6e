"""Settings every test needs before jax starts: eight CPU devices, few optimisations, the persistent compile cache."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import tempfile
from pathlib import Path

# Without fusion emitters a training step compiles in a third of the time. A jaxlib that does not know the flag would stop.
COMPILE = " --xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else ""
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8{COMPILE}")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "occreid_jax_test_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import sys  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # configs


# Files whose slow tests share nothing: each may run on its own, so that no process waits for the other at the end.
LOOSE = ("test_numerics.py", "test_full_size.py", "test_tpu_programs.py")
SLOW_LIMIT = 1200  # seconds for one slow test, on cores that do other work too


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keeps the tests of a file in one process, which shares programs and runs, and begins with what takes longest."""
    for item in items:
        slow = item.get_closest_marker("slow") is not None
        alone = slow and item.path.name in LOOSE
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else item.path.name))
        if slow and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # stable: files keep their order


@pytest.fixture(autouse=True)
def free_memory(request):
    """Gives back what a slow test of whole networks took, so that no process keeps the programs and arrays of them all."""
    yield
    if request.node.path.name in LOOSE and request.node.get_closest_marker("slow") is not None:
        import jax

        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="session")
def market_root(tmp_path_factory) -> Path:
    """A tiny set in Market-1501 layout: 16 training and 8 test identities, 3 cameras, noisy two-by-four colour patterns."""
    import cv2

    root = tmp_path_factory.mktemp("data") / "market1501"
    noise = np.random.default_rng(0)
    for folder, identities, count in (
        ("bounding_box_train", range(1, 17), 3),
        ("query", range(17, 25), 1),
        ("bounding_box_test", range(17, 25), 2),
    ):
        (root / folder).mkdir(parents=True)
        for pid in identities:
            pattern = np.random.default_rng(pid).integers(0, 255, (4, 2, 3)).astype(np.uint8)
            for camera in (1, 2, 3):
                for number in range(count):
                    image = cv2.resize(pattern, (32, 64), interpolation=cv2.INTER_NEAREST).astype(int)
                    image = (image + noise.integers(-40, 40, image.shape)).clip(0, 255).astype(np.uint8)
                    cv2.imwrite(str(root / folder / f"{pid:04d}_c{camera}s1_{number:06d}_00.jpg"), image)
    return root.parent


@pytest.fixture(scope="session")
def gap_root(market_root, tmp_path_factory) -> Path:
    """`market_root` without the training pictures of camera 2, and gallery pictures of camera 3 named as camera 5's."""
    root = tmp_path_factory.mktemp("gap")
    for path in sorted((market_root / "market1501").rglob("*.jpg")):
        folder = path.parent.name
        if folder == "bounding_box_train" and "_c2" in path.name:
            continue
        name = path.name.replace("_c3", "_c5") if folder == "bounding_box_test" else path.name
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).symlink_to(path)
    return root


@pytest.fixture(scope="session")
def people_root(market_root, tmp_path_factory) -> Path:
    """The same people as own pictures, one folder per identity, without cameras."""
    root = tmp_path_factory.mktemp("people")
    for role, folder in (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test")):
        for path in sorted((market_root / "market1501" / folder).iterdir()):
            (root / role / path.name[:4]).mkdir(parents=True, exist_ok=True)
            (root / role / path.name[:4] / path.name).symlink_to(path)
    return root


@pytest.fixture(scope="session")
def tiny_config(market_root):
    """A function ``(**changes) -> config``: the baseline with a backbone of one block on `market_root`, trained in seconds.

    The 24 queries are one batch of the evaluation and the 48 pictures of the gallery two, so that one shape is compiled.
    """
    from configs import baseline

    def make(**changes):
        config = baseline.get_config("dataset=market1501,backbone=32x1x2")
        config.data.root = str(market_root)
        config.data.image_size = (64, 32)
        config.stages.main.epochs = 3
        config.stages.main.sampler.batch_size = 16
        config.evaluation.batch_size = 24
        config.report.enabled = False
        for path, value in changes.items():
            block, *_, last = config, *path.split("__")
            for key in path.split("__")[:-1]:
                block = block[key]
            block[last] = value
        return config

    return make

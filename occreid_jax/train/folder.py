"""The run folder: whose run it holds, and the config and the data that the run was begun with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from occreid_jax import config as configuration
from occreid_jax import distributed
from occreid_jax.errors import UserError
from occreid_jax.files import read_json, write_json
from occreid_jax.types import Meta

# Settings that do not change what a run computes; a run may be resumed with others.
FREE_KEYS = ("data.root", "data.cache", "data.resident", "report.", "checkpoint.keep", "mesh.", "loop.log_every")


def read_config(workdir: Path):
    """The config of a run folder. Raises `UserError` if there is no run or its config is no config."""
    workdir = Path(workdir)
    for name in ("config.json", "meta.json"):
        if not (workdir / name).is_file():
            raise UserError(f"{workdir}: no run there ({name} is missing); --workdir must name a folder that train.py filled")
    config = configuration.from_dict(read_json(workdir / "config.json"))
    configuration.validate(config)
    return config


def read_meta(workdir: Path) -> Meta:
    """The `Meta` a run was trained with."""
    path = Path(workdir) / "meta.json"
    values = read_json(path)
    try:
        numbers = tuple(values.get("camera_numbers", range(values["cameras"])))  # older runs counted cameras from the first
        return Meta(**{**values, "image_size": tuple(values["image_size"]), "camera_numbers": numbers})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: not what a run writes ({error}); copy the whole run folder again, or train anew") from error


def check_workdir(workdir: Path, config) -> None:
    """Raises `UserError` with the differences if ``workdir`` holds a run of another config.

    A folder without a checkpoint and without metrics holds nothing that could be lost: the command that failed there may be
    mended and given again.
    """
    workdir = Path(workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder, it is made if it does not exist")
    if not (workdir / "config.json").exists():
        return
    changes = differences(workdir, config)
    if changes and has_run(workdir):
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changes[:6])}{' ...' if len(changes) > 6 else ''}); "
            "choose another --workdir or the old settings"
        )


def differences(workdir: Path, config) -> list[str]:
    """How ``config`` differs from the one of a run folder in what a run computes."""
    stored = configuration.to_dict(configuration.from_dict(read_json(Path(workdir) / "config.json")))
    changes = configuration.differences(stored, configuration.to_dict(config))
    return [change for change in changes if not change.startswith(FREE_KEYS)]


def has_run(workdir: Path) -> bool:
    """Whether a run folder holds work: a checkpoint, or metrics of steps that were done."""
    metrics = Path(workdir) / "metrics.jsonl"
    return any(Path(workdir).glob("checkpoints/*/[0-9]*")) or (metrics.is_file() and metrics.stat().st_size > 0)


def claim_workdir(workdir: Path, config, meta: Meta) -> bool:
    """Writes config.json and meta.json into a new run folder, or checks that an old one belongs to this config.

    Returns whether the folder held a run before. Raises `UserError` as `check_workdir`, or if the run in the folder was begun
    on other data.
    """
    check_workdir(workdir, config)
    path = Path(workdir) / "config.json"
    if path.exists() and not differences(workdir, config):
        old, new = dataclasses.asdict(read_meta(workdir)), dataclasses.asdict(meta)
        # The hash changes with a file that was damaged, which whoever opens it tells better. Older runs did not record cameras;
        # without a network of cameras, their numbers may also have been made up.
        left_out = ["training_set"] if old["camera_network"] else ["training_set", *(name for name in old if "camera" in name)]
        old, new = ({name: value for name, value in each.items() if name not in left_out} for each in (old, new))
        if changes := configuration.differences(old, new):
            raise UserError(
                f"{workdir} holds a run on another training set ({'; '.join(changes)}); choose another --workdir or give the old "
                "set with --config.data.root"
            )
        return True
    distributed.barrier("compared")  # nobody reads the old file any more
    if distributed.is_lead():
        (Path(workdir) / "untrained.json").unlink(missing_ok=True)  # of a config that trained nothing
        write_json(Path(workdir) / "meta.json", dataclasses.asdict(meta))
        write_json(path, configuration.to_dict(config))
    distributed.barrier("claimed")
    return False

"""Runs one config with several seeds and prints mean and spread.

Restartable: finished seeds are not run again, a cut one goes on.

    python launch/seeds.py --config=configs/baseline.py:size=small --seeds=0,1,2
    python launch/seeds.py --config=configs/baseline.py:size=small,person_mask=true --seeds=0,1,2 --name=oracle

Run folders are <workdir>/seed-<n>, the table is <workdir>/seeds.json. The synthetic pictures are the same for every seed; the
seed moves initial values, the order of the data and the augmentation.
"""

from __future__ import annotations

import command
from absl import flags

CONFIG = command.define_config()
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds to run")
NAME = flags.DEFINE_string("name", "", "appended to the default run folder's name, to keep variants apart")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all seeds (default: runs/seeds/<method>-<dataset>[-<name>])")
flags.mark_flag_as_required("config")

MEASURES = ("mAP", "rank1", "rank5", "rank10", "mINP", "untrained_mAP")


def main() -> None:
    import statistics
    import subprocess
    import sys
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.files import read_json, write_json

    if not all(seed.isdigit() for seed in SEEDS.value):
        raise UserError(f"--seeds={','.join(SEEDS.value)}: give numbers, for example --seeds=0,1,2")
    default = command.default_workdir(CONFIG.value)
    folder = Path(WORKDIR.value or default.parent / "seeds" / "-".join(filter(None, (default.name, NAME.value))))
    # The config file and every override, exactly as given, so that each seed is what the user could type himself.
    arguments = [argument for argument in sys.argv[1:] if argument.startswith(("--config", "--noconfig"))]
    results = {}
    for seed in SEEDS.value:
        workdir = folder / f"seed-{seed}"
        print(f"seed {seed}: {workdir}", flush=True)
        train = [sys.executable, str(command.ROOT / "launch" / "train.py"), *arguments]
        # train.py refuses a folder of another config and goes on where it stopped; a finished run only evaluates again, so
        # its result is taken from the folder instead if the config agrees.
        finished = workdir / "results.json"
        if not (finished.exists() and same_config(workdir, int(seed))):
            code = subprocess.call([*train, f"--config.seed={seed}", f"--workdir={workdir}"])
            if code:
                raise UserError(f"seed {seed} ended with status {code}; run the same command again to go on")
        results[seed] = read_json(finished)
    table = {}
    for measure in MEASURES:
        values = [result[measure] for result in results.values() if result.get(measure) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            table[measure] = {"mean": round(statistics.mean(values), 2), "std": round(spread, 2), "values": values}
            print(f"{measure:14s} {table[measure]['mean']:6.2f} +- {table[measure]['std']:.2f}   {values}")
    protocol = next(iter(results.values()))["protocol"]
    write_json(folder / "seeds.json", {"protocol": protocol, "seeds": SEEDS.value, **table})
    print(f"{protocol}, {len(results)} seeds: {folder / 'seeds.json'}")


def same_config(workdir, seed: int) -> bool:
    """Whether a finished run belongs to the config at hand."""
    from occreid_jax import config as configuration
    from occreid_jax.errors import UserError
    from occreid_jax.files import read_json
    from occreid_jax.train.setup import FREE_KEYS

    wanted = configuration.to_dict(CONFIG.value) | {"seed": seed}
    changes = configuration.differences(read_json(workdir / "config.json"), wanted)
    changes = [change for change in changes if not change.startswith(FREE_KEYS)]
    if changes:
        raise UserError(f"{workdir} holds a run of another config ({'; '.join(changes[:4])}); choose another --name or --workdir")
    return True


if __name__ == "__main__":
    command.run(main)

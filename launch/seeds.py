"""Runs one config with several seeds and prints mean and spread.

Restartable: finished seeds are not run again, a cut one goes on.

    python launch/seeds.py --config=configs/baseline.py:size=small --seeds=0,1,2
    python launch/seeds.py --config=configs/baseline.py:size=small,person_mask=true --seeds=0,1,2 --name=oracle

Run folders are <workdir>/seed-<n>, the table is <workdir>/seeds.json. The synthetic pictures are the same for every seed; the
seed moves initial values, the order of the data and the augmentation.
"""

from __future__ import annotations

import re
import sys

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
    from pathlib import Path

    from occreid_jax.errors import UserError
    from occreid_jax.files import read_json, write_json

    seeds = [seed.strip() for seed in SEEDS.value]
    numbers = {int(seed) for seed in seeds if re.fullmatch("[0-9]{1,9}", seed)}
    if not seeds or len(numbers) < len(seeds):
        raise UserError(f"--seeds={','.join(SEEDS.value)}: give different whole numbers, for example --seeds=0,1,2")
    default = command.default_workdir(CONFIG.value)
    folder = Path(WORKDIR.value or default.parent / "seeds" / "-".join(filter(None, (default.name, NAME.value))))
    # The config file and every override, exactly as given, so that each seed is what the user could type himself.
    arguments = config_arguments(sys.argv[1:])
    results = {}
    for seed in seeds:
        workdir = folder / f"seed-{seed}"
        print(f"seed {seed}: {workdir}", flush=True)
        train = [sys.executable, str(command.ROOT / "launch" / "train.py"), *arguments]
        # train.py refuses a folder of another config and goes on where it stopped; a finished run only evaluates again, so
        # its result is taken from the folder instead if the config agrees.
        finished = workdir / "results.json"
        if not (finished.exists() and same_config(workdir, int(seed))):
            code = command.call([*train, f"--config.seed={seed}", f"--workdir={workdir}"])
            if code < 0:
                raise UserError(f"seed {seed} was ended by signal {-code}; run the same command again to go on")
            if code:
                print(f"seed {seed} ended with status {code}; the same command goes on there", flush=True)
                sys.exit(code)  # training has said in one line what was wrong
        results[seed] = read_json(finished)
    table = {}
    for measure in MEASURES:
        values = [result[measure] for result in results.values() if result.get(measure) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            table[measure] = {"mean": round(statistics.mean(values), 2), "std": round(spread, 2), "values": values}
            print(f"{measure:14s} {table[measure]['mean']:6.2f} +- {table[measure]['std']:.2f}   {values}")
    protocol = next(iter(results.values()))["protocol"]
    write_json(folder / "seeds.json", {"protocol": protocol, "seeds": seeds, **table})
    print(f"{protocol}, {len(results)} seeds: {folder / 'seeds.json'}")


def config_arguments(arguments: list[str]) -> list[str]:
    """Those of the command line that concern the config; a value may stand apart from its flag."""
    kept, takes_next = [], False
    for argument in arguments:
        flag = re.match(r"--?(no)?config(\.|=|$)", argument)
        if flag or (takes_next and not argument.startswith("-")):
            kept.append(argument)
        takes_next = bool(flag) and "=" not in argument
    return kept


def same_config(workdir, seed: int) -> bool:
    """True; raises `UserError` unless the finished run belongs to the config at hand."""
    from occreid_jax.train.folder import check_workdir

    config = CONFIG.value.copy_and_resolve_references()
    config.seed = seed
    check_workdir(workdir, config)
    return True


if __name__ == "__main__":
    command.run(main)

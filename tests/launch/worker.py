"""Runs launch commands in forked children of one process that has imported everything: a command then starts in no time.

Reads one JSON object a line (script, arguments, folder, limit, output) and answers each with the exit status. A child that used
a device ends as a command does, through the interpreter's own exit. No backend of JAX exists before the fork.
"""

import ctypes
import gc
import json
import os
import resource
import runpy
import sys


def become_command(request: dict) -> None:
    """Turns this process into the command that was asked for."""
    out, error = (os.open(request["output"] + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for end in (".out", ".err"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, out, error)):
        os.dup2(file, number)
    os.chdir(request["folder"])
    os.environ.update(request["environment"])
    if request["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], request["limit"]))
    if request["bound"]:
        obey_permissions()
    sys.argv = [request["script"], *request["arguments"]]
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as ended:
        from jax._src import xla_bridge

        if isinstance(ended.code, int) and not xla_bridge._backends:
            # Nothing was started, so nothing can speak while it is torn down: half a second of clearing up is spared.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended.code)
        raise


def obey_permissions() -> None:
    """Gives up the superuser's right to read and write everything: Linux's capset with CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    taken away."""
    if os.getuid() != 0:
        return
    library = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # twice effective, permitted, inheritable
    if library.capget(header, data) == 0:
        data[0], data[1] = data[0] & ~0b110, data[1] & ~0b110
        library.capset(header, data)


def main() -> None:
    launch = sys.argv[1]
    sys.path.insert(0, launch)  # as Python does for a script in that folder
    import command  # noqa: F401  sets the environment of JAX

    import occreid_jax.methods.baseline
    import occreid_jax.report
    import occreid_jax.synthetic
    import occreid_jax.train.loop  # noqa: F401

    gc.freeze()  # a child's collector then leaves the shared pages alone
    print("ready", flush=True)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            become_command(json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()

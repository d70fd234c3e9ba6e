"""What a checkpoint that cannot be written tells: one line, and nothing behind it."""

import gc
import warnings

from occreid_jax.train.checkpoint import Checkpoints


def test_what_orbax_left_unfinished_adds_no_lines(tmp_path):
    async def write_fragment():
        """Begun by orbax's thread and never waited for."""

    checkpoints = Checkpoints(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        write_fragment()
        gc.collect()
        assert [warning.category for warning in told] == [RuntimeWarning]
        error = checkpoints.not_written("a checkpoint", OSError("File too large"))
        write_fragment()
        gc.collect()
        warnings.warn("another", stacklevel=1)
    assert [warning.category for warning in told] == [RuntimeWarning, UserWarning]
    assert f"{tmp_path}/checkpoints: a checkpoint could not be written (File too large)" in str(error)
    checkpoints.close()

"""What the report shows of single parts: erased cells dark, a map per part by its name, visibility as bars beside the truth."""

import jax.numpy as jnp
import numpy as np

from occreid_jax.evaluation.part_scores import WORDS
from occreid_jax.report import inspection, pictures


def test_parts_are_drawn_by_name(make_run):
    _, setup, params, extra = make_run()

    def inspect(params, extra, batch):
        count = len(batch["image"])
        erased = jnp.zeros((count, 4, 2), bool).at[:, 0].set(True)
        return {"erased": erased, "correlation": jnp.ones((count, 9, 4, 2)) / 9, "visible": jnp.full((count, 8), 0.75),
                "score": jnp.full(count, 0.5)}  # fmt: skip

    setup.method.inspect = inspect
    found = inspection.inspect(setup, params, extra)
    for card in found.cards:
        captions = [picture["caption"] for picture in card["pictures"]]
        expected = ["query", *(f"correlation {word}" for word in WORDS), "erased (dark)", "visible parts (line: true)", "truth"]
        assert sorted(captions) == sorted(expected)
        assert "score 0.5" in card["note"] and "visible" not in card["note"]


def test_bars_are_as_long_as_the_numbers_and_lines_stand_at_the_truth():
    drawn = pictures.bars(["head", "torso"], np.array([0.5, 1.0]), np.array([1.0, 0.0])).astype(int)
    assert drawn.shape == (32, pictures.BARS, 3)
    middle = [drawn[3 + 14 * row + 6] for row in (0, 1)]
    blue = [(line == pictures.COVERING.astype(int)).all(axis=1).sum() for line in middle]
    assert 0.45 < blue[0] / blue[1] < 0.55
    green = [np.flatnonzero((line == pictures.OUTLINE.astype(int)).all(axis=1)) for line in middle]
    assert green[0].min() > pictures.BARS - 10 and abs(int(green[1].min()) - pictures.BARS // 2) <= 1


def test_shares_of_maps_that_only_the_shown_pictures_have():
    assert inspection.mean_of([{"attention": 0.5, "Grad-CAM": 0.25}, {"attention": np.nan, "Grad-CAM": 0.75}], "Grad-CAM") == 50.0
    assert inspection.mean_of([{"attention": 0.5}, {"attention": np.nan}], "attention") == 50.0
    assert np.isnan(inspection.mean_of([{"attention": 0.5}], "Grad-CAM"))

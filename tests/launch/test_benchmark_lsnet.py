"""launch/benchmark_lsnet.py: the ViT beside LSNet has its arithmetic, and mistakes are a line."""

import pytest

from occreid_jax.nn import lsnet, vit


@pytest.mark.parametrize("image_size", [(256, 128), (224, 224)])
def test_the_vit_has_the_same_arithmetic(image_size):
    operations = lsnet.forward_flops(lsnet.SIZES["lsnet_t"], image_size)
    size = vit.nearest_size(operations, image_size)
    assert vit.forward_flops(size, image_size, 16, 16) == pytest.approx(operations, rel=0.05)


def test_mistakes(launch):
    launch("benchmark_lsnet.py", "--network=lsnet_x").mistake("unknown LSNet 'lsnet_x'; known: lsnet_t")
    launch("benchmark_lsnet.py", "--size=32,16").mistake("give height and width, 64 or more")


@pytest.mark.slow
def test_times_and_ratios_are_printed(launch):
    lines = launch("benchmark_lsnet.py", "--network=micro", "--batch=2", "--size=64,64", "--repeats=2").fine().out.splitlines()
    assert len(lines) == 5 and lines[1].startswith("micro") and lines[2].startswith("ViT 32x")
    assert [line.split(":")[0] for line in lines[3:]] == ["forward", "forward and backward"]

"""The same work in PyTorch, where torch and timm are installed: a tuned training step and embedding of the ViT baseline.

timm's ViT on the same picture size, bfloat16 autocast, `torch.compile`, channels-last pictures that are on the device already, a
fused optimiser; cross entropy and a batch-hard triplet loss. Flip, crop and erasing are left out, so the peer does less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from occreid_jax.acceptance.run import read_rows
from occreid_jax.acceptance.task import IDENTITIES, Task

STEPS = 10


def peer(task: Task) -> Iterator[dict[str, Any]]:
    """Images per second of training and embedding, beside those that the part "speed" found at the same batch size."""
    try:
        import timm  # noqa: F401
        import torch
    except (ImportError, RuntimeError) as error:  # not there, or parts that do not fit each other
        yield {"left_out": f"{str(error).splitlines()[0]}; pip install torch timm"}
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = {(row["stage"], row["batch"]): row for row in read_rows(task.out, "speed") if row["method"] == "baseline"}
    sizes = sorted({batch for _, batch in own}) or [64]
    for size in sizes:
        model = vision_transformer(task.published).to(device, memory_format=torch.channels_last)
        for what, call in (("main", training_step(model, size, task.published, device)), ("embedding", None)):
            call = call or embedding(model, size, task.published, device)
            seconds = timed(call, device)
            rate = size / float(np.median(seconds))
            ours = own.get((what, size), {}).get("images_per_second")
            yield {
                "what": f"timm {'ViT-B/16, 256x128' if task.published else 'ViT, 64x32'}, {what}",
                "batch": size,
                "images_per_second": round(rate, 1),
                "median_ms": round(1e3 * float(np.median(seconds)), 3),
                "p95_ms": round(1e3 * float(np.percentile(seconds, 95)), 3),
                "ours": ours,
                "ratio": round(ours / rate, 3) if ours else None,
                "torch": torch.__version__,
            }


def vision_transformer(published: bool):
    """ViT-B/16, or the micro encoder of the small size: width 32, two blocks, two heads."""
    import timm

    if published:
        return timm.create_model("vit_base_patch16_224", img_size=(256, 128), num_classes=IDENTITIES)
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=(64, 32), patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=IDENTITIES)


def pictures(size: int, published: bool, device: str):
    import torch

    height, width = (256, 128) if published else (64, 32)
    images = torch.randint(0, 256, (size, 3, height, width), dtype=torch.uint8, device=device)
    return images.to(memory_format=torch.channels_last)


def training_step(model, size: int, published: bool, device: str) -> Callable[[], Any]:
    """One step: normalise, forward, both losses, backward, update."""
    import torch

    images, labels = pictures(size, published, device), torch.arange(size, device=device) // 4
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def loss(images):
        tokens = model.forward_features(images.float() / 127.5 - 1)
        feature = model.forward_head(tokens, pre_logits=True).float()
        distance = torch.cdist(feature, feature)
        same = labels[:, None] == labels[None]
        farthest = torch.where(same, distance, 0.0).amax(dim=1)
        nearest = torch.where(same, torch.inf, distance).amin(dim=1)
        triplet = torch.nn.functional.softplus(farthest - nearest).mean()
        return torch.nn.functional.cross_entropy(model.head(feature).float(), labels) + triplet

    compiled = torch.compile(loss)

    def step():
        with torch.autocast(device, torch.bfloat16):
            value = compiled(images)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value

    return step


def embedding(model, size: int, published: bool, device: str) -> Callable[[], Any]:
    import torch

    images = pictures(size, published, device)
    compiled = torch.compile(lambda images: model.forward_features(images.float() / 127.5 - 1)[:, 0].float())

    def embed():
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return compiled(images)

    return embed


def timed(call: Callable[[], Any], device: str) -> np.ndarray:
    """Seconds of `STEPS` calls, each waited for, after three that are not counted: the first compiles."""
    import torch

    seconds = []
    for number in range(STEPS + 3):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return np.array(seconds)

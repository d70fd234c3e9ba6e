"""Body-part labels of people's own pictures by a human-parsing model of transformers: label maps that `data.labels` reads.

The model segments a crop into classes of clothes and limbs, which become our parts. It does not tell people apart: of a second
person in the crop everything is labelled too. Needs PyTorch.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from occreid_jax.data.decode import decode_image
from occreid_jax.data.labels import class_table, with_sides
from occreid_jax.data.occluders import pictures_below
from occreid_jax.errors import UserError
from occreid_jax.files import remedy, write_json

DEFAULT = "mattmdjaga/segformer_b2_clothes"  # SegFormer-B2 trained on ATR, 18 classes; MIT licence
SIZE, MEAN, STD = 512, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of models that do not say


class ParsingModel(NamedTuple):
    """A model that is open."""

    segment: Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> numbers of classes uint8 [H, W]
    classes: dict[int, str]  # what the numbers are
    table: np.ndarray  # uint8 [256], see `labels.class_table`


def parsing_model(model: str = DEFAULT) -> ParsingModel:
    """Opens a model for semantic segmentation, by a local folder in transformers' format or by its name on a hub.

    Weights are read from safetensors only, so nothing in them is executed. Raises `UserError` without PyTorch, for a model that
    is not there, and for one whose classes are no parts of a person.
    """
    if not importlib.util.find_spec("torch"):
        raise UserError("labels by a human-parsing model need PyTorch: pip install 'occreid_jax[torch]'")
    import torch
    from transformers import AutoModelForSemanticSegmentation

    try:
        network = AutoModelForSemanticSegmentation.from_pretrained(model, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(f"--model={model}: no model for semantic segmentation can be opened there ({told})") from error
    classes = {int(number): str(name) for number, name in network.config.id2label.items()}
    table = class_table(classes, f"--model={model}")
    settings = processor_settings(Path(model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.eval().to(device)

    def segment(picture: np.ndarray) -> np.ndarray:
        side = Image.fromarray(picture).resize(settings["size"][::-1], Image.Resampling.BILINEAR)
        values = (np.asarray(side, np.float32) / 255 - np.float32(settings["mean"])) / np.float32(settings["std"])
        with torch.inference_mode():
            pixels = torch.from_numpy(values.transpose(2, 0, 1)[None]).to(device)
            logits = network(pixel_values=pixels).logits
            logits = torch.nn.functional.interpolate(logits, picture.shape[:2], mode="bilinear", align_corners=False)
        return logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    return ParsingModel(segment, classes, table)


def processor_settings(folder: Path) -> dict[str, Any]:
    """``size`` (height, width), ``mean`` and ``std`` of a model's pictures, as its preprocessor_config.json tells them."""
    path = folder / "preprocessor_config.json"
    try:
        told = json.loads(path.read_text()) if path.is_file() else {}
        size = told.get("size", SIZE)
        size = size if isinstance(size, dict) else {"height": size, "width": size}
        pair = int(size.get("height", SIZE)), int(size.get("width", SIZE))
        return {"size": pair, "mean": tuple(told.get("image_mean", MEAN)), "std": tuple(told.get("image_std", STD))}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore the model's folder") from error


def label_pictures(
    pictures: Path, out: Path, model: ParsingModel, source: str, progress: Callable[[int, int], None]
) -> tuple[int, list[str]]:
    """Writes a label map for every picture below the folder ``pictures``, under the same path below ``out``, and labels.json.

    Maps that are there stay, so a build that was cut goes on. Returns how many were written and the pictures that cannot be
    read, each with the reason. Raises `UserError` if ``out`` cannot be written.
    """
    written, left_out = 0, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "labels.json", {"classes": "ours", "model": source, "classes of the model": model.classes})
        for path in pictures_below(pictures, progress):
            place = (out / path.relative_to(pictures)).with_suffix(".png")
            if place.is_file():
                continue
            decoded = decode_image(path, None)
            if decoded.problem:
                left_out.append(f"{path.relative_to(pictures)} ({decoded.problem})")
                continue
            labels = with_sides(model.table[model.segment(decoded.pixels)])
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_suffix(".tmp")
            Image.fromarray(labels).save(temporary, "PNG")
            temporary.replace(place)
            written += 1
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); {remedy(error)}") from error
    return written, left_out

"""Named colours and the colour sets that outfits share."""

from __future__ import annotations

COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (28, 28, 32),
    "white": (235, 235, 230),
    "grey": (128, 128, 132),
    "dark grey": (70, 72, 78),
    "red": (190, 36, 40),
    "dark red": (112, 28, 40),
    "pink": (230, 140, 165),
    "orange": (226, 126, 40),
    "yellow": (232, 206, 70),
    "beige": (205, 184, 148),
    "brown": (112, 76, 48),
    "green": (52, 132, 66),
    "olive": (98, 102, 56),
    "teal": (32, 124, 128),
    "light blue": (134, 178, 222),
    "blue": (44, 84, 176),
    "navy": (30, 40, 84),
    "purple": (110, 62, 140),
}
"""sRGB bytes of every colour a garment can have."""

PALETTES: tuple[tuple[str, str, str, str, str], ...] = (
    ("black", "white", "blue", "white", "brown"),
    ("red", "white", "navy", "black", "black"),
    ("navy", "light blue", "beige", "brown", "dark grey"),
    ("green", "yellow", "black", "white", "olive"),
    ("grey", "black", "navy", "white", "red"),
    ("white", "blue", "dark grey", "black", "navy"),
    ("purple", "pink", "black", "white", "beige"),
    ("orange", "dark grey", "blue", "dark grey", "black"),
    ("olive", "beige", "brown", "brown", "dark red"),
    ("light blue", "navy", "white", "red", "brown"),
    ("dark red", "grey", "black", "brown", "teal"),
    ("teal", "white", "dark grey", "black", "orange"),
    ("yellow", "navy", "light blue", "white", "purple"),
    ("pink", "purple", "grey", "white", "white"),
    ("beige", "dark red", "olive", "black", "green"),
    ("blue", "orange", "black", "grey", "grey"),
    ("white", "red", "blue", "red", "orange"),
    ("black", "yellow", "grey", "yellow", "blue"),
    ("brown", "white", "green", "black", "beige"),
    ("light blue", "pink", "navy", "white", "pink"),
    ("red", "black", "beige", "dark grey", "olive"),
    ("dark grey", "teal", "teal", "white", "yellow"),
    ("yellow", "green", "brown", "black", "black"),
    ("navy", "red", "grey", "red", "light blue"),
    ("green", "black", "white", "grey", "brown"),
    ("pink", "white", "blue", "pink", "purple"),
    ("orange", "yellow", "olive", "brown", "navy"),
    ("purple", "grey", "light blue", "black", "teal"),
)
"""Upper garment, its second colour, lower garment, shoes, bag. Many people share one palette on purpose."""

SKIN: tuple[tuple[int, int, int], ...] = ((241, 208, 184), (224, 178, 146), (188, 136, 100), (134, 90, 62), (88, 58, 44))

HAIR: dict[str, tuple[int, int, int]] = {
    "black": (30, 26, 26),
    "brown": (88, 56, 34),
    "blond": (206, 172, 104),
    "red": (150, 68, 34),
    "grey": (160, 158, 156),
}

"""Sentences a category name is put into before it is encoded."""

from __future__ import annotations

from collections.abc import Sequence

from rar_mmdet.errors import ConfigError

__all__ = ["TEMPLATE_SETS", "resolve_templates"]

# "a photo of a {}" is RAR's own prompt (paper, section 3.2) and what its authors used for the CLIP baseline.
SINGLE = ("a photo of a {}",)

# The seven CLIP's authors chose greedily from their 80 (Radford et al. 2021; openai/CLIP, ImageNet prompt notebook).
CLIP7 = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

# All 80 for ImageNet (same source), one a line.
CLIP80 = tuple(
    """
a bad photo of a {}.
a photo of many {}.
a sculpture of a {}.
a photo of the hard to see {}.
a low resolution photo of the {}.
a rendering of a {}.
graffiti of a {}.
a bad photo of the {}.
a cropped photo of the {}.
a tattoo of a {}.
the embroidered {}.
a photo of a hard to see {}.
a bright photo of a {}.
a photo of a clean {}.
a photo of a dirty {}.
a dark photo of the {}.
a drawing of a {}.
a photo of my {}.
the plastic {}.
a photo of the cool {}.
a close-up photo of a {}.
a black and white photo of the {}.
a painting of the {}.
a painting of a {}.
a pixelated photo of the {}.
a sculpture of the {}.
a bright photo of the {}.
a cropped photo of a {}.
a plastic {}.
a photo of the dirty {}.
a jpeg corrupted photo of a {}.
a blurry photo of the {}.
a photo of the {}.
a good photo of the {}.
a rendering of the {}.
a {} in a video game.
a photo of one {}.
a doodle of a {}.
a close-up photo of the {}.
a photo of a {}.
the origami {}.
the {} in a video game.
a sketch of a {}.
a doodle of the {}.
a origami {}.
a low resolution photo of a {}.
the toy {}.
a rendition of the {}.
a photo of the clean {}.
a photo of a large {}.
a rendition of a {}.
a photo of a nice {}.
a photo of a weird {}.
a blurry photo of a {}.
a cartoon {}.
art of a {}.
a sketch of the {}.
a embroidered {}.
a pixelated photo of a {}.
itap of the {}.
a jpeg corrupted photo of the {}.
a good photo of a {}.
a plushie {}.
a photo of the nice {}.
a photo of the small {}.
a photo of the weird {}.
the cartoon {}.
art of the {}.
a drawing of the {}.
a photo of the large {}.
a black and white photo of a {}.
the plushie {}.
a dark photo of a {}.
itap of a {}.
graffiti of the {}.
a toy {}.
itap of my {}.
a photo of a cool {}.
a photo of a small {}.
a tattoo of the {}.
""".strip().split("\n")
)

# An ensemble of ViLD's size, 81 (Gu et al. 2022, section 3; RegionCLIP uses 81 as well). Ours: CLIP's 80 and ViLD's
# sentence for an object among others; ViLD's own list differs in its articles.
VILD81 = (*CLIP80, "There is a {} in the scene.")

TEMPLATE_SETS = {"single": SINGLE, "clip7": CLIP7, "clip80": CLIP80, "vild81": VILD81}


def resolve_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named set, or one's own list, checked.

    Raises:
        ConfigError: no such set, an empty list, or a template without exactly one `{}`.
    """
    if isinstance(templates, str):
        if templates in TEMPLATE_SETS:
            return TEMPLATE_SETS[templates]
        if "{}" not in templates:
            raise ConfigError(
                f"no template set {templates!r}; there are {', '.join(TEMPLATE_SETS)}, or give a list of sentences "
                "with `{}` where the name belongs"
            )
        templates = [templates]
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ConfigError(f"template {template!r} must hold `{{}}` exactly once, where the name belongs")
    if not templates:
        raise ConfigError("templates is an empty list; give at least one sentence with `{}`")
    return tuple(templates)

"""Prompts that turn a detection set's class names into text: ViLD's 63 templates, and "a {name}".

ViLD's (Gu et al., ICLR 2022) are those with which F-ViT's embeddings were made: the name's own article, and "This is "
before every template that begins with "a" or "the". "a {name}" is Detic's (Zhou et al., ECCV 2022).
"""

from collections.abc import Sequence
from itertools import product

PROMPTS = ("vild", "a")
BACKGROUND = "background"


def _vild_templates() -> tuple[str, ...]:
    templates = ["There is {article} {} in the scene.", "There is the {} in the scene."]
    templates += [f"a photo of {which} {{}} in the scene." for which in ("{article}", "the", "one")]
    templates += [f"itap of {which} {{}}." for which in ("{article}", "my", "the")]
    templates += [f"a photo of {which} {{}}." for which in ("{article}", "my", "the", "one", "many")]
    before_photo = ("good", "bad", "bright", "dark", "low resolution", "cropped", "close-up", "jpeg corrupted")
    before_photo += ("blurry", "pixelated", "black and white")
    templates += [
        f"a {quality} photo of {which} {{}}." for quality, which in product(before_photo, ("{article}", "the"))
    ]
    before_name = ("nice", "cool", "weird", "small", "large", "clean", "dirty", "hard to see")
    templates += [f"a photo of {which} {quality} {{}}." for quality, which in product(before_name, ("a", "the"))]
    kinds = ("plastic", "toy", "plushie", "cartoon")
    templates += [f"{which} {kind} {{}}." for kind, which in product(kinds, ("a", "the"))]
    templates += ["an embroidered {}.", "the embroidered {}.", "a painting of the {}.", "a painting of a {}."]
    return tuple(f"This is {template}" if template.startswith(("a", "the")) else template for template in templates)


VILD_TEMPLATES = _vild_templates()


def readable_name(name: str) -> str:
    """COCO's or LVIS's class name as running text: "Bow_(weapon)" -> "bow (weapon)", "flip/flop" -> "flip or flop"."""
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")


def group_by_templates(names: Sequence[str], prompts: str) -> dict[tuple[str, ...], list[int]]:
    """Which templates class names take: templates with {} for the name -> places in `names`.

    Args:
        names: As the data set spells them, none empty; the first letter decides between "a" and "an".
        prompts: One of `PROMPTS`; any other is a ValueError.
    """
    if prompts not in PROMPTS:
        raise ValueError(f"prompts must be one of {', '.join(PROMPTS)}, got {prompts!r}")
    if prompts == "a":
        return {("a {}",): list(range(len(names)))}
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, name in enumerate(names):
        article = "an" if name[0] in "aeiou" else "a"
        templates = tuple(template.replace("{article}", article) for template in VILD_TEMPLATES)
        groups.setdefault(templates, []).append(place)
    return groups

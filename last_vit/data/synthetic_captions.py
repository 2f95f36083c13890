"""What one sees on a synthetic image, in words: the colour of most of an object, and where on the image it is.

Both are read off the finished pixels and the visible mask, so they say what is there, not what was drawn.
"""

import numpy as np

# Upper ends of the hues, in degrees, and their names when light and when dark.
_HUES = (
    (15, "red", "red"),
    (45, "orange", "brown"),
    (68, "yellow", "olive"),
    (160, "green", "green"),
    (195, "turquoise", "teal"),
    (255, "blue", "blue"),
    (290, "purple", "purple"),
    (345, "pink", "purple"),
    (360, "red", "red"),
)
_GREYS = ((64, "black"), (176, "gray"), (256, "white"))  # upper ends of the brightest channel
_LIGHT = 150  # of the brightest channel, from where on a colour has its light name
_LEAST_SATURATION = 0.22  # below it, a colour is a grey
_POLLED = 300  # pixels that decide an object's colour
COLOURS = tuple(dict.fromkeys([name for row in _HUES for name in row[1:]] + [name for _, name in _GREYS]))
_MIDDLE = (0.4, 0.6)
_PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "in the middle", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)
PLACES = tuple(place for row in _PLACES for place in row)


def describe(class_name: str, background: str, pixels: np.ndarray, mask: np.ndarray) -> str:
    """A caption, such as "a photo of a red striped star in the upper left, on a cloudy background".

    Args:
        class_name: Such as "striped star".
        background: Kind of the scene, an adjective.
        pixels: uint8 [H, W, 3].
        mask: bool [H, W], the object's visible pixels, at least one.
    """
    colour = colour_name(pixels[mask])
    article = "an" if colour[0] in "aeiou" else "a"
    return f"a photo of {article} {colour} {class_name} {place_name(mask)}, on a {background} background"


def colour_name(pixels: np.ndarray) -> str:
    """The colour word, one of `COLOURS`, that most of these pixels (uint8 [M, 3]) are called by.

    Of many pixels only every so many-th is looked at: a poll, because images are drawn while a model trains.
    """
    channels = pixels[:: max(1, len(pixels) // _POLLED)].astype(np.float32)
    brightest, spread = channels.max(axis=1), np.ptp(channels, axis=1)
    red, green, blue = channels.T
    with np.errstate(invalid="ignore", divide="ignore"):
        sixth = np.where(
            brightest == red,
            (green - blue) / spread % 6,
            np.where(brightest == green, (blue - red) / spread + 2, (red - green) / spread + 4),
        )
    hue = np.searchsorted([end / 60 for end, *_ in _HUES], sixth, side="right").clip(max=len(_HUES) - 1)
    grey = np.searchsorted([end for end, _ in _GREYS], brightest, side="right")
    is_grey = (spread < _LEAST_SATURATION * brightest) | (brightest < _GREYS[0][0])
    is_light = (brightest >= _LIGHT).astype(int)
    votes = np.zeros(len(COLOURS), dtype=np.int64)
    np.add.at(votes, _HUE_WORDS[hue, is_light][~is_grey], 1)
    np.add.at(votes, _GREY_WORDS[grey][is_grey], 1)
    return COLOURS[int(votes.argmax())]


def place_name(mask: np.ndarray) -> str:
    """Where on the image, in words of `PLACES`, the centre of gravity of a mask (bool [H, W]) lies.

    The middle is a fifth of each side wide, for objects keep near it.
    """
    row, column = (
        int(np.searchsorted(_MIDDLE, (index.mean() + 0.5) / side, side="right"))
        for index, side in zip(mask.nonzero(), mask.shape, strict=True)
    )
    return _PLACES[row][column]


_HUE_WORDS = np.array([[COLOURS.index(dark), COLOURS.index(light)] for _, light, dark in _HUES])
_GREY_WORDS = np.array([COLOURS.index(name) for _, name in _GREYS])

"""What the classes of the segmentation benchmarks are called in words, by protocol.

SCLIP and NACLIP use the same names; ClearCLIP and ProxyCLIP differ where a class has several of them. They are the
files that the published numbers were made with, odd ones included: "ship" for VOC's boat, "table" for its diningtable,
words written together ("trafficlight") in COCO-Stuff, ADE20K and Cityscapes but not in COCO-Object.

A class 0 of several names is the background said in words. COCO-Object's holds "bed", which is a class of its own, too:
the two embeddings are equal, and the earlier one, the background, wins the tie. So no pixel becomes a bed under SCLIP,
NACLIP and ProxyCLIP; that is in their numbers.
"""

from class_names import ClassNames


def _names(text: str, separator: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(separator))


_VOC = _names(
    "aeroplane bicycle bird ship bottle bus car cat chair cow table dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor"
)
_CONTEXT = _names(
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair "
    "cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike "
    "mountain mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track "
    "train tree truck tvmonitor wall water window wood"
)
_COCO_THINGS = _names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, "
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
    "scissors, teddy bear, hair drier, toothbrush",
    separator=", ",
)
_COCO_STUFF = _names(
    "banner blanket branch bridge building-other bush cabinet cage cardboard carpet ceiling-other ceiling-tile cloth "
    "clothes clouds counter cupboard curtain desk-stuff dirt door-stuff fence floor-marble floor-other floor-stone "
    "floor-tile floor-wood flower fog food-other fruit furniture-other grass gravel ground-other hill house leaves "
    "light mat metal mirror-stuff moss mountain mud napkin net paper pavement pillow plant-other plastic platform "
    "playingfield railing railroad river road rock roof rug salad sand sea shelf sky-other skyscraper snow "
    "solid-other stairs stone straw structural-other table tent textile-other towel tree vegetable wall-brick "
    "wall-concrete wall-other wall-panel wall-stone wall-tile wall-wood water-other waterdrops window-blind "
    "window-other wood"
)
_ADE20K = _names(
    "wall building sky floor tree ceiling road bed windowpane grass cabinet sidewalk person earth door table mountain "
    "plant curtain chair car water painting sofa shelf house sea mirror rug field armchair seat fence desk rock "
    "wardrobe lamp bathtub railing cushion base box column signboard chestofdrawers counter sand sink skyscraper "
    "fireplace refrigerator grandstand path stairs runway case pooltable pillow screendoor stairway river bridge "
    "bookcase blind coffeetable toilet flower book hill bench countertop stove palm kitchenisland computer "
    "swivelchair boat bar arcademachine hovel bus towel light truck tower chandelier awning streetlight booth "
    "televisionreceiver airplane dirttrack apparel pole land bannister escalator ottoman bottle buffet poster stage "
    "van ship fountain conveyerbelt canopy washer plaything swimmingpool stool barrel basket waterfall tent bag "
    "minibike cradle oven ball food step tank tradename microwave pot animal bicycle lake dishwasher screen blanket "
    "sculpture hood sconce vase trafficlight tray ashcan fan pier crtscreen plate monitor bulletinboard shower "
    "radiator glass clock flag"
)
_CITYSCAPES = _names(
    "road sidewalk building wall fence pole trafficlight trafficsign vegetation terrain sky person rider car truck "
    "bus train motorcycle bicycle"
)

# Data set -> one plain name per class, the background included: for tables and legends.
DISPLAY_NAMES: dict[str, tuple[str, ...]] = {
    "voc20": _VOC,
    "voc21": ("background", *_VOC),
    "context59": _CONTEXT,
    "context60": ("background", *_CONTEXT),
    "coco_object": ("background", *_COCO_THINGS),
    "coco_stuff": (*(name.replace(" ", "") for name in _COCO_THINGS), *_COCO_STUFF),
    "ade20k": _ADE20K,
    "cityscapes": _CITYSCAPES,
}

_PERSON = ("person", *(f"person in {wear}" for wear in ("shirt", "jeans", "dress", "sweater", "skirt", "jacket")))
_TV = ("television monitor", "tv monitor", "monitor", "television", "screen")
_BACKGROUND = _names(
    "sky wall tree wood grass road sea river mountain sands desk bed building cloud lamp door window wardrobe ceiling "
    "shelf curtain stair floor hill rail fence"
)
_OUTDOOR_BACKGROUND = _names(
    "sky wall tree wood grass road sea river mountain sands desk bed building cloud floor hill rail"
)

_VOC_SYNONYMS = {"person": _PERSON, "tvmonitor": _TV}
_SCLIP_SYNONYMS = {
    "voc20": _VOC_SYNONYMS,
    "voc21": {**_VOC_SYNONYMS, "background": _BACKGROUND},
    "coco_object": {"person": (*_PERSON, "body"), "background": _BACKGROUND},
}
# Protocol -> data set -> display name -> the names that stand for it, where there is more to say than the name.
_SYNONYMS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "sclip": _SCLIP_SYNONYMS,
    "naclip": _SCLIP_SYNONYMS,
    "clearclip": {},
    "proxyclip": {"voc21": {"background": _BACKGROUND}, "coco_object": {"background": _OUTDOOR_BACKGROUND}},
}


def class_names(dataset: str, protocol: str) -> ClassNames:
    """The names of a data set's classes under a protocol, one tuple per class in the order of the labels.

    Args:
        dataset: A key of `DISPLAY_NAMES`.
        protocol: "sclip", "naclip", "clearclip" or "proxyclip".

    Raises:
        KeyError: Another data set or protocol.

    Example:
        >>> class_names("voc21", "clearclip")[:2]
        (('background',), ('aeroplane',))
    """
    synonyms = _SYNONYMS[protocol].get(dataset, {})
    return tuple(synonyms.get(name, (name,)) for name in DISPLAY_NAMES[dataset])

"""Class names: the COCO data set's, and what a class is called when a file does not say.

COCO numbers its categories from 1 to 90 and uses 80 of those numbers (cocodataset.org). A network's classes are either
those 80 in order, or the numbers themselves.
"""

from __future__ import annotations

from segment.errors import ModelError

_COCO = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
COCO = tuple(_COCO.split(","))
"""The 80 categories, in order."""
_UNUSED = (0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def coco_by_number() -> tuple[str, ...]:
    """91 names, so that COCO's category n is the n-th; a number that it does not use is called by itself."""
    names = iter(COCO)
    return tuple(str(number) if number in _UNUSED else next(names) for number in range(91))


def labels_for(count: int, given: tuple[str, ...] = (), own: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of `count` classes: those `given`, else the file's `own`, else COCO's, else numbers.

    Raises ModelError if names are given for another number of classes; a last class without one is a background's.
    """
    if given and len(given) not in (count, count - 1):
        raise ModelError(f"There are {len(given)} labels for the {count} classes of the model; give one for each.")
    if not given and len(own) == count:
        return own
    for names in (given, COCO, coco_by_number()):
        if len(names) == count:
            return names
    return given + tuple(str(number) for number in range(len(given), count))

"""What the classes of a data set are called in words: from ImageNet, from class folders, or from a file.

A class has one name or several (synonyms); `ClassNames` holds them in the order of the labels. Files, in UTF-8:

| file        | form                                                                                              |
|-------------|---------------------------------------------------------------------------------------------------|
| text        | one class per line, in the order of the labels; synonyms between ";" in a line with one, else "," |
| text, keyed | as Kaggle's LOC_synset_mapping.txt: each line is `n01440764 tench, Tinca tinca`, in any order;     |
|             | so, too, `10 tench` where class folders are numbers                                               |
| JSON list   | an entry per class, in the order of the labels: a name, taken as it stands, or a list of synonyms  |
| JSON object | class folder -> a name, or a list of synonyms                                                      |

Keyed files are matched with the names of the class folders and may hold classes that are not asked for. Nothing in a
file is passed over: blank lines, empty names, names that stand twice and a wrong number of classes are errors.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from last_vit.names import imagenet_synsets

ClassNames = tuple[tuple[str, ...], ...]

IMAGENET, FOLDERS = "imagenet", "folders"
_KEYED_LINE = re.compile(r"(n\d{8}|\d+)\s+(\S.*)")
_Entry = tuple[str | None, str, Sequence[str]]  # class folder, if keyed; where it stands; names


def find_class_names(source: str | Path | None, folders: Sequence[str]) -> ClassNames:
    """The names of the classes whose images lie in `folders`, in the order of the labels: one tuple per folder.

    `source` is "imagenet", "folders" (the folders' own names with "_" as a space) or a file; None is "imagenet" for
    folders that are all called as ImageNet's.
    """
    if source is None and not set(folders) <= set(imagenet_synsets()):
        raise ValueError(
            f"the class folders, such as {folders[0]!r}, are not ImageNet's (n01440764, ...), so what to call the "
            f"classes must be said: a file with one class per line, or {FOLDERS!r} for the folders' own names"
        )
    if source is None or source == IMAGENET:
        return imagenet_class_names(folders)
    if source == FOLDERS:
        return _checked([(None, f"folder {name!r}", [name.replace("_", " ")]) for name in folders])
    return read_class_names(source, len(folders), folders)


def read_class_names(
    path: str | Path, num_classes: int | None = None, folders: Sequence[str] | None = None
) -> ClassNames:
    """The names in a file, in one of the forms of this module's table, white space collapsed.

    `num_classes` is how many it must name, None any number; `folders` are the class folders in the order of the labels,
    for keyed files. By upper and lower case alone names do not differ, for CLIP's tokenizer drops case.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no class-name file at {str(path)!r}: expected one class per line, or JSON")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"class-name file {path} is not UTF-8 (byte {error.start}); save it in UTF-8") from error
    try:
        entries = _json_entries(text) if path.suffix.lower() == ".json" else _line_entries(text)
        if any(folder is not None for folder, *_ in entries):
            entries = _pick(entries, folders)
        if num_classes is not None and len(entries) != num_classes:
            raise ValueError(f"it names {len(entries)} classes, the data has {num_classes}")
        return _checked(entries)
    except ValueError as error:
        raise ValueError(f"class-name file {path}: {error}") from error


def parse_vocabulary(text: str) -> ClassNames:
    """Classes from one line or a file: "cat, grass, sky", with synonyms "cat; kitten, grass"; or a path as above."""
    if not text.strip(" ,;"):
        raise ValueError(f"the vocabulary {text!r} is empty; name the classes to look for, such as 'cat, grass, sky'")
    if Path(text).suffix in (".txt", ".json"):
        return read_class_names(text)
    return _checked([(None, f"entry {i}", part.split(";")) for i, part in enumerate(text.split(","), start=1)])


def imagenet_class_names(wnids: Sequence[str]) -> ClassNames:
    """open_clip's names of ImageNet-1k classes, the ones that CLIP's published accuracies are measured with.

    Folders 0, 1, ..., 999 (ImageNetV2's) are the classes in their order. Two pairs of the 1000 classes share a name in
    that list (missile, sunglasses) and so tie.
    """
    import open_clip

    if list(wnids) == [str(label) for label in range(1000)]:
        wnids = imagenet_synsets()
    known = dict(zip(imagenet_synsets(), open_clip.IMAGENET_CLASSNAMES, strict=True))
    unknown = next((wnid for wnid in wnids if wnid not in known), None)
    if unknown is not None:
        raise ValueError(f"class folder {unknown!r} is none of ImageNet-1k's 1000; name the classes in a file")
    return tuple((known[wnid],) for wnid in wnids)


def flatten_names(class_names: ClassNames) -> tuple[list[str], list[int]]:
    """All names in one list, class by class, and the class of each in [0, C).

    Example:
        >>> flatten_names((("person", "man"), ("tree",)))
        (['person', 'man', 'tree'], [0, 0, 1])
    """
    names = [name for names in class_names for name in names]
    return names, [label for label, names in enumerate(class_names) for _ in names]


def _line_entries(text: str) -> list[_Entry]:
    lines = text.removesuffix("\n").split("\n")
    blank = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    if blank is not None:
        raise ValueError(f"line {blank} is blank; each line is one class: give that class its name, or remove it")
    matches = [_KEYED_LINE.fullmatch(line.strip()) for line in lines]
    pairs = [match.groups() for match in matches] if all(matches) else [(None, line) for line in lines]
    return [
        (folder, f"line {number}", names.split(";" if ";" in names else ","))
        for number, (folder, names) in enumerate(pairs, start=1)
    ]


def _json_entries(text: str) -> list[_Entry]:
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: pairs if pairs else {})  # a dict would hide twins
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); a file with one class per line ends in .txt") from error
    if not isinstance(content, list):
        raise ValueError(f"expected a list of classes, or an object of class folders, got {type(content).__name__}")
    is_keyed = bool(content) and isinstance(content[0], tuple)
    entries = []
    for key, value in content if is_keyed else enumerate(content, start=1):
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"entry {key!r} must be a name or a list of names, got {json.dumps(value)[:60]}")
        entries.append((key if is_keyed else None, f"entry {key!r}", names))
    return entries


def _pick(entries: Sequence[_Entry], folders: Sequence[str] | None) -> list[_Entry]:
    """Of a keyed file the classes that there are images of, in their order."""
    by_folder: dict[str | None, _Entry] = {}
    for entry in entries:
        if by_folder.setdefault(entry[0], entry) is not entry:
            raise ValueError(f"class folder {entry[0]!r} stands twice, in {by_folder[entry[0]][1]} and {entry[1]}")
    if folders is None:
        raise ValueError("its classes are keyed by class folders, which this data has not; give one class per line")
    missing = [folder for folder in folders if folder not in by_folder]
    if missing:
        first = f"for example {missing[0]!r}; it holds {len(by_folder)}, for example {entries[0][0]!r}"
        raise ValueError(f"{len(missing)} of the {len(folders)} class folders are not in it, {first}")
    return [by_folder[folder] for folder in folders]


def _checked(entries: Sequence[_Entry]) -> ClassNames:
    """Collapse white space; refuse empty names and names that stand twice."""
    found: dict[str, str] = {}
    cleaned = []
    for _, place, names in entries:
        own = tuple(" ".join(name.split()) for name in names)
        for name in own:
            if not name:
                raise ValueError(f"{place} has an empty name; is there a separator too many?")
            if name.casefold() in found:
                raise ValueError(
                    f"name {name!r} stands in {found[name.casefold()]} and in {place}; such classes cannot be told "
                    "apart, and a synonym counts once: rename or remove one"
                )
            found[name.casefold()] = place
        cleaned.append(own)
    return tuple(cleaned)

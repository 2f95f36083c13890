"""What is not ours and is changed for a while: names of modules, and logging."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


class Overlay:
    """A module with some names replaced, for the one who is given it.

    Args:
        module: Anything with attributes, an overlay too.
        names: Attributes that differ; all others are the module's.
    """

    def __init__(self, module: Any, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def replaced(module: ModuleType, **names: Any) -> Iterator[None]:
    """Give names of a module other values for the duration of the block.

    Raises:
        AttributeError: The module has no such name: it is of another version.
    """
    before = {name: getattr(module, name) for name in names}
    vars(module).update(names)
    try:
        yield
    finally:
        vars(module).update(before)


@contextmanager
def logging_restored() -> Iterator[None]:
    """Undo what the block does to logging: open_clip_train adds handlers to the root and sets every logger's level.

    Left so, a second run in this process would log each line twice, and torch would print statistics at exit.
    """
    handlers, disabled = list(logging.root.handlers), logging.root.manager.disable
    levels = {logger: logger.level for logger in _loggers()}
    try:
        yield
    finally:
        for handler in set(logging.root.handlers) - set(handlers):
            logging.root.removeHandler(handler)
            handler.close()
        for logger in _loggers():  # one that came into being in the block goes by its parent's level
            logger.setLevel(levels.get(logger, logging.NOTSET))
        logging.disable(disabled)


def _loggers() -> list[logging.Logger]:
    return [logging.root, *map(logging.getLogger, list(logging.root.manager.loggerDict))]

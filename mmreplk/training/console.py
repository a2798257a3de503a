"""What MMEngine logs at length goes to the log file alone; the console gets a line."""

import logging

from mmengine.logging import MMLogger

# How MMEngine's messages of many lines, or of a line for each parameter, begin.
CONFIG = 'Config:'
OPTIONS = 'paramwise_options'
LONG = (CONFIG, OPTIONS, 'Hooks will be executed in the following order')
_SYSTEM = 'System environment:'


class _Short(logging.Filter):
    """Leaves long messages out, at every level but DEBUG."""

    def __init__(self, beginnings: tuple[str, ...]):
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text.startswith(self.beginnings)
                    or (CONFIG in self.beginnings and _SYSTEM in text[:200]))


def keep_off_console(logger: MMLogger, beginnings: tuple[str, ...]) -> bool:
    """Leave messages out of the console that stay in the log file.

    Nothing is left out with ``log_level='DEBUG'``, or where there is no log file.

    Args:
        logger (MMLogger): MMEngine's.
        beginnings (tuple[str]): How they begin. With :data:`CONFIG` among them, the description of
            the system is left out, too.

    Returns:
        bool: Whether they are left out.
    """
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    consoles = [handler for handler in logger.handlers
                if isinstance(handler, logging.StreamHandler) and handler not in files]
    if not files or any(handler.level <= logging.DEBUG for handler in consoles):
        return False
    for handler in consoles:
        if not any(isinstance(item, _Short) and item.beginnings == beginnings
                   for item in handler.filters):
            handler.addFilter(_Short(beginnings))
    return True

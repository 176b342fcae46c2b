"""How a command ends that cannot do what it was asked for: in one line."""

import re
import sys
from typing import NoReturn

__all__ = ["fail", "reason"]

# What jsonargparse says besides the reason: the alternatives that did not fit either, and what it was given.
_NOISE = re.compile(
    r"Expected a path but|Expected a <class 'NoneType'>|Does not validate against|Subtypes:|Errors:|Given value|"
    r"Type typing\.Callable|Problem with given class_path '[^']*':$"
)
_KEY = re.compile(r"""Parser key ["']([^"']*)["']:?""")


def fail(status: int, message: object) -> NoReturn:
    """End the program with one line on standard error: status 2 for a wrong setting, 1 for a failure of the world."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(status)


def reason(error: Exception) -> str:
    """One line of a parser's message of many: the setting, and what is wrong with it."""
    keys, reasons = [], []
    for line in str(error).splitlines():
        keys += _KEY.findall(line)
        text = re.sub(r"^\s*- ", "", _KEY.sub("", line)).strip()
        if text and not _NOISE.match(text):
            reasons.append(re.sub(r"Expected a <class '([^']*)'>(?:\. Got value:)?", r"expected \1, got", text))
    if reasons and reasons[0].startswith("Problems parsing config"):
        return " ".join(reasons)
    return ": ".join([".".join(keys), *reasons[:1]] if keys else reasons[:1]) or str(error)

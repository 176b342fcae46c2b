"""The classes of a model with labels, and the class of each sample.

If nothing is asked, every class has its turn: sample i is of class i mod K. A network
learns "no class", the label -1, only if labels were dropped in training.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor

from ncsn.networks.layers import NO_LABEL

__all__ = ["ALL", "NONE", "NO_LABEL", "Label", "Labels", "numbered_names"]

# The class of each example of a batch, or the number or name of one class, "all" or "none".
Label: TypeAlias = Tensor | Sequence[int | str] | int | str | None
ALL, NONE = "all", "none"  # every class in its turn; no class
MOST_SHOWN = 20  # classes in one line


@dataclass(frozen=True)
class Labels:
    """The classes of a model, and what a label may be.

    Args:
        names: the names of the classes by their numbers; none for a model without labels.
        dropped: labels were dropped in training, so that the model knows "no class".
    """

    names: Sequence[str]
    dropped: bool = True

    def of(self, label: Label, indices: Sequence[int]) -> Tensor | None:
        """Return the classes (B,) of the samples `indices`; None for a model without labels.

        Args:
            label: classes (B,), -1 for none, or the names of B classes; or "all" for each in
                its turn, the default; or, for all samples, the number or the name of a class,
                or "none".

        Raises:
            ValueError: if the model does not have these classes.
        """
        if isinstance(label, Iterable) and not isinstance(label, (str, Tensor)):
            label = torch.tensor([self.number(each) for each in label])
        if isinstance(label, Tensor):
            return self.checked(label, len(indices))
        if self.names and label in (None, ALL):
            return torch.tensor(indices) % len(self.names)
        number = NO_LABEL if label is None else self.number(label)
        return torch.full((len(indices),), number) if self.names else None

    def number(self, label: int | str) -> int:
        """Return the number of one class, -1 for "none"; text is first a name, then a number."""
        count = len(self.names)
        if label in (NONE, NO_LABEL):
            if self.names and not self.dropped:
                raise ValueError(
                    f"label: {label}, but the model was trained with label_dropout 0; give a class"
                )
            return NO_LABEL
        if not self.names:
            reason = "the model was trained without labels (--data.labels true)"
            raise ValueError(f"label: {label}, but {reason}")
        if label in self.names:
            return self.names.index(str(label))
        is_number = isinstance(label, Integral) or (isinstance(label, str) and label.isdecimal())
        if is_number and 0 <= int(label) < count:
            return int(label)
        close = get_close_matches(str(label), self.names, 1, 0.7)  # "1" is not close to "10"
        hint = f"; did you mean {close[0]!r}?" if close else ""
        expected = f"`{ALL}`, `{NONE}` or a class ({numbered_names(self.names)})"
        raise ValueError(f"label: expected {expected}, got {label}{hint}")

    def checked(self, label: Tensor, count: int) -> Tensor:
        """Return the classes (B,) of a batch of `count`, in 64 bits, or refuse them."""
        if label.shape != (count,) or label.is_floating_point():
            found = f"{label.dtype} {tuple(label.shape)}"
            raise ValueError(f"label: expected {count} integers, got {found}")
        label = label.long()
        lowest, highest = NO_LABEL + (not self.dropped), len(self.names) - 1
        if self.names and not ((label >= lowest) & (label <= highest)).all():
            expected = f"classes from {lowest} to {highest}"
            raise ValueError(f"label: expected {expected}, got {label.tolist()[:10]}")
        return label

    def described(self, label: int | str | None, before: str = "") -> str:
        """Return words for a label of all samples, after `before`; "" without labels."""
        if not self.names:
            return ""
        if label in (None, ALL):
            return f"{before}each of {len(self.names)} classes in turn"
        number = self.number(str(label) if isinstance(label, str) else int(label or 0))
        of = "no class" if number == NO_LABEL else f"class {number} = {self.names[number]}"
        return before + of


def numbered_names(names: Sequence[str], most: int = MOST_SHOWN) -> str:
    """Return "0 = cat, 1 = dog", of the first classes if there are many."""
    shown = [f"{number} = {name}" for number, name in enumerate(names[:most])]
    return ", ".join(shown + ["..."] * (len(names) > most))

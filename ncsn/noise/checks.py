"""The one way in which a constructor refuses a number."""

__all__ = ["expect"]


def expect(rule: str, holds: bool, owner: object, **given: object) -> None:
    """Raise a ValueError that names the rule, the values and the class, unless the rule holds."""
    if not holds:
        got = ", ".join(f"{name}={value!r}" for name, value in given.items())
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f"expected {rule}, got {got} ({name})")

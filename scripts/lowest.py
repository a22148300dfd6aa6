"""Prints the lower bounds of what the installed package depends on as pins, one a line, for `pip install -c`."""

from importlib.metadata import requires

from packaging.requirements import Requirement


def pin(requirement: Requirement) -> str:
    """Returns `name==version` for `name>=version`.

    Raises:
        ValueError: If the requirement has no lower bound.
    """
    lower = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(lower) != 1:
        raise ValueError(f"{requirement.name} must have one lower bound, got '{requirement.specifier}'")
    return f"{requirement.name}=={lower[0]}"


def pins(package: str) -> list[str]:
    """Returns the pins of what a package needs without any extra."""
    requirements = [Requirement(line) for line in requires(package) or []]
    return [pin(one) for one in requirements if "extra" not in str(one.marker or "")]


if __name__ == "__main__":
    print("\n".join(pins("hf_mabprune")))

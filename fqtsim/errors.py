"""What can go wrong, in classes. A message names the place, the value, the rule and the remedy."""

from __future__ import annotations


class FqtsimError(Exception):
    """Any error that fqtsim raises on purpose."""


class InputError(FqtsimError, ValueError):
    """Bad input: an argument, a file or a combination of them. The command line exits with 2."""


class FileError(InputError):
    """Bad input at a line of a file: `FILE:LINE: key.path = value: rule; remedy`."""

    def __init__(self, file: str, line: int, key: str, value: str | None, rule: str, remedy: str) -> None:
        self.file, self.line, self.key, self.value, self.rule, self.remedy = (
            file,
            line,
            key,
            value,
            rule,
            remedy,
        )
        subject = f"{key} = {value}: " if key and value is not None else f"{key}: " if key else ""
        super().__init__(f"{file}:{line}: {subject}{rule}; {remedy}")


class BackendRefused(InputError):
    """A backend cannot guarantee the result asked for; the message says why and who can."""


class TrainingStopped(FqtsimError):
    """A step met NaN, infinity or a number out of range; the state before the step is intact (S5.9)."""


#: What stops a step under `zero: authors`, for reports to tell from divergence.
NO_AUTHORS_STEP = (
    "the authors' PTQ has no step here: the negative side of the range is shorter than one code, which is NaN in their "
    "code; use zero: aligned"
)


class MissingPackage(FqtsimError, ImportError):
    """A package of an optional extra is not installed; the message names the extra."""

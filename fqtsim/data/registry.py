"""Names of data sets on the command line: NAME or NAME:PATH."""

from __future__ import annotations

from pathlib import Path

from fqtsim.data import cifar10, digits, fashion_mnist
from fqtsim.data.dataset import Dataset
from fqtsim.errors import InputError

_NAMES = ("digits", "fashion-mnist", "cifar10")


def dataset_names() -> list[str]:
    """Return the names that load_dataset() knows."""
    return list(_NAMES)


def load_dataset(spec: str) -> Dataset:
    """Return the data set that `spec` names: digits, fashion-mnist[:FOLDER] or cifar10:PATH.

    Raises InputError for an unknown name, a missing path and files whose content is not the set's.
    """
    name, separator, rest = spec.partition(":")
    path = Path(rest).expanduser() if rest else None
    if path is not None and not path.exists():
        raise InputError(f"data = {spec}: {path} does not exist; check the path")
    if name == "digits":
        if separator:
            raise InputError(f"data = {spec}: digits takes no path, it ships with fqtsim; use digits")
        return digits.load()
    if name == "fashion-mnist":
        return fashion_mnist.load(path or _fashion_folder(spec))
    if name == "cifar10":
        if path is None:
            raise InputError(
                f"data = {spec}: must name the archive or folder; use cifar10:cifar-10-binary.tar.gz, "
                "or a folder or archive of train/<class>/*.png and test/<class>/*.png"
            )
        return cifar10.load(path)
    raise InputError(f"data = {spec}: must be one of {', '.join(_NAMES)}, with :PATH after it; for example digits")


def _fashion_folder(spec: str) -> Path:
    if fashion_mnist.SYSTEM_FOLDER.is_dir():
        return fashion_mnist.SYSTEM_FOLDER
    raise InputError(
        f"data = {spec}: no folder named, and {fashion_mnist.SYSTEM_FOLDER} does not exist; "
        "run: fqtsim data fetch fashion-mnist --out DIR, then use fashion-mnist:DIR"
    )

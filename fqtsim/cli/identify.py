"""`fqtsim identify`: which hardware, or which parameters, gave these vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqtsim.cli.npz import MAX_ARRAY_BYTES, read_arrays
from fqtsim.errors import InputError

if TYPE_CHECKING:
    import numpy as np

_GEMM = ({"a", "b", "codes"}, {"c"})
_REQUANTIZATION = ({"acc", "codes"}, {"multiplier", "shift", "scale", "zero_point"})


def read_vectors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of an .npz or .safetensors file. Raises InputError for other names and other files."""
    arrays = _safetensors(path) if path.suffix == ".safetensors" else read_arrays(path)
    for required, allowed in (_GEMM, _REQUANTIZATION):
        if required <= set(arrays) <= required | allowed:
            return arrays
    raise InputError(
        f"{path}: arrays {', '.join(sorted(arrays)) or 'none'}: must be a, b, codes and optionally c; or acc, codes "
        "and the arguments of requantize; write it with numpy.savez(path, a=a, b=b, codes=codes)"
    )


def _safetensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if path.stat().st_size > MAX_ARRAY_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size} bytes: must be at most 1 GiB; give a part of it")
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable .safetensors ({error}); write it with safetensors.numpy") from error


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--among", multiple=True, help="A shipped name or a file; may be repeated. All shipped ones by default.")
@click.option("--save", type=click.Path(path_type=Path), help="Folder for inputs that tell the survivors apart.")
def identify(file: Path, among: tuple[str, ...], save: Path | None) -> int:
    """Say which hardware, or which registers and groupings, gave the codes in FILE.

    FILE is an .npz or .safetensors with a (M,K), b (K,N), codes (M,N) and optionally c, the start values; or with
    acc, codes and the arguments of requantization. Exit code 1 where nothing that was tried gives these codes.
    """
    from fqtsim.identify import identify as identified_by
    from fqtsim.identify import identify_requantization

    arrays = read_vectors(file)
    names = list(among) or None
    if "acc" in arrays:
        arguments = {name: array for name, array in arrays.items() if name not in ("acc", "codes")}
        found = identify_requantization(arrays["acc"], arrays["codes"], arguments, names)
    else:
        found = identified_by(arrays["a"], arrays["b"], arrays["codes"], arrays.get("c"), names)
    click.echo(str(found))
    for reason in found.refused:
        click.echo(f"not tried: {reason}", err=True)
    if save is not None:
        _save(found.questions, save)
    return 0 if found.survivors else 1


def _save(questions: tuple[Any, ...], folder: Path) -> None:
    """Write every question as an .npz of a, b and c, under a temporary name first."""
    import os

    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for number, question in enumerate(questions, 1):
        path = folder / f"inputs_{number}.npz"
        unfinished = path.with_name(f".{path.name}.part")
        with unfinished.open("wb") as stream:
            arrays = {"a": question.a, "b": question.b} | ({} if question.c is None else {"c": question.c})
            np.savez(stream, **arrays)
        os.replace(unfinished, path)
        click.echo(f"{path}: run it where the vectors are from")

"""Changes of what is read: missing or repeated k, signedness, layout, rows and columns that are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fqtsim.hw.spec import Datapath
from fqtsim.identify.change import Array, Change, Problem
from fqtsim.words import IntFormat

MULTIPLES = (4, 8, 16, 32, 64, 128, 2, 256)
TILES = (16, 32, 64, 128, 8, 4, 256)

Read = Callable[[Problem], Problem | None]


def operand_changes(datapath: Datapath) -> Iterator[Change]:
    """Yield every change of what is read."""
    yield from _signedness(datapath)
    yield from _edges()
    yield from _ranges_of_k()
    yield from _layouts()
    yield from _narrowed_operands(datapath)


def _taking(choose: Callable[[int], Array | None]) -> Read:
    """Return a change that multiplies the k that choose(K) lists, in that order."""

    def change(problem: Problem) -> Problem | None:
        ks = choose(problem.k)
        return None if ks is None else problem._replace(a=problem.a[:, ks], b=problem.b[ks])

    return change


def _ranges_of_k() -> Iterator[Change]:
    def first(k: int, wanted: int) -> Array | None:
        return np.arange(max(wanted, 0)) if wanted < k else None

    yield Change("the last k is left out", "range of k", operands=_taking(lambda k: first(k, k - 1)), common=True)
    yield Change("the first k is left out", "range of k", operands=_taking(lambda k: np.arange(1, k)), common=True)
    for n in MULTIPLES:
        text = f"the k beyond the last multiple of {n} are left out"
        take = _taking(lambda k, n=n: first(k, k - k % n))  # type: ignore[misc]
        yield Change(text, "range of k", operands=take, common=n in (4, 8, 16, 32, 64))
    for n in (2, 3, 4):
        take = _taking(lambda k, n=n: first(k, k - n))  # type: ignore[misc]
        yield Change(f"the last {n} k are left out", "range of k", operands=take)
    repeats: list[tuple[str, Callable[[int], Array | None]]] = [
        ("the last k counts twice", lambda k: np.r_[np.arange(k), k - 1] if k else None),
        ("the first k counts twice", lambda k: np.r_[0, np.arange(k)] if k else None),
    ]
    for text, choose in repeats:
        yield Change(text, "range of k", operands=_taking(choose))
    for n in TILES:
        yield from _tile_changes(n)
    yield Change("every second k is left out", "range of k", operands=_taking(lambda k: np.arange(0, k, 2)))
    yield Change("only every second k counts, from k = 1", "range of k", operands=_taking(lambda k: np.arange(1, k, 2)))
    yield Change("b is read one k late", "range of k", operands=_b_shifted(1))
    yield Change("b is read one k early", "range of k", operands=_b_shifted(-1))


def _tile_changes(n: int) -> Iterator[Change]:
    def choices() -> Iterator[tuple[str, Callable[[int], Array | None]]]:
        yield (f"the k beyond the last multiple of {n} count twice",
               lambda k: np.r_[np.arange(k), np.arange(k - k % n, k)] if k % n else None)  # fmt: skip
        yield (f"k is padded to a multiple of {n} by repeating the last k",
               lambda k: np.minimum(np.arange(k + -k % n), k - 1) if k % n else None)  # fmt: skip
        yield (f"k is padded to a multiple of {n} by starting again at k = 0",
               lambda k: np.arange(k + -k % n) % k if k % n else None)  # fmt: skip
        yield f"only the last tile of {n} k counts", lambda k: np.arange((k - 1) // n * n, k) if k > n else None
        yield f"only the first tile of {n} k counts", lambda k: np.arange(n) if k > n else None
        yield (f"the first tile of {n} k is left out", lambda k: np.arange(n, k) if k > n else None)
        yield f"the last tile of {n} k is left out", lambda k: np.arange((k - 1) // n * n) if k > n else None
        yield f"the last k of every tile of {n} is left out", lambda k: _without(k, n, n - 1)
        yield f"the first k of every tile of {n} is left out", lambda k: _without(k, n, 0)
        yield f"every second tile of {n} k is left out", lambda k: np.flatnonzero(np.arange(k) // n % 2 == 0)
        yield f"the first tile of {n} k is read for every tile", lambda k: np.arange(k) % n if k > n else None

    for text, choose in choices():
        yield Change(text, "range of k", operands=_taking(choose))


def _without(k: int, n: int, place: int) -> Array | None:
    ks = np.arange(k)
    return ks[ks % n != place] if k > place else None


def _b_shifted(by: int) -> Read:
    def change(problem: Problem) -> Problem | None:
        return problem._replace(b=np.roll(problem.b, by, axis=0)) if problem.k > 1 else None

    return change


def _signedness(datapath: Datapath) -> Iterator[Change]:
    forms = {"a": datapath.multiplier_format("a"), "b": datapath.multiplier_format("b")}
    reads = {}
    for name, form in forms.items():
        reads[name] = partial(_read_as, name=name, form=IntFormat(form.bits, not form.signed))
        kind = "unsigned" if form.signed else "signed"
        text = f"{name}'s codes, {form}, are read as {kind}"
        yield Change(text, f"signedness of {name}", operands=reads[name], common=True)

    def both(problem: Problem) -> Problem | None:
        changed = reads["a"](problem)
        return reads["b"](changed)

    kinds = {name: "unsigned" if form.signed else "signed" for name, form in forms.items()}
    text = f"a's codes are read as {kinds['a']} and b's as {kinds['b']}"
    yield Change(text, "signedness", operands=both, common=True)


def _read_as(problem: Problem, name: str, form: IntFormat) -> Problem:
    return with_operand(problem, name, wrapped(problem.a if name == "a" else problem.b, form))


def with_operand(problem: Problem, name: str, codes: Array) -> Problem:
    """Return the problem with another a or b."""
    codes = codes.astype(np.int32)
    return problem._replace(a=codes) if name == "a" else problem._replace(b=codes)


def wrapped(codes: Array, form: IntFormat) -> Array:
    """Return the low bits of codes, read in a format of at most 31 bits."""
    low = codes.astype(np.int64) & ((1 << form.bits) - 1)
    taken: Array = np.where(low > form.maximum, low - (1 << form.bits), low).astype(np.int32)
    return taken


def _narrowed_operands(datapath: Datapath) -> Iterator[Change]:
    for name in ("a", "b"):
        form = datapath.multiplier_format("a" if name == "a" else "b")
        if form.signed:
            yield Change(f"the sign of {name}'s codes is lost", f"range of {name}",
                         operands=partial(_magnitude, name=name))  # fmt: skip
            clamp = partial(_clamped, name=name, low=form.minimum + 1, high=form.maximum)
            yield Change(f"{name}'s most negative code is read as {form.minimum + 1}", f"range of {name}",
                         operands=clamp)  # fmt: skip
        for bits in dict.fromkeys((form.bits - 1, 8, 7, 4)):
            if not 2 <= bits < form.bits:
                continue
            for signed in (True, False):
                narrow = IntFormat(bits, signed)
                wrap = partial(_read_as, name=name, form=narrow)
                yield Change(f"only the low {bits} bits of {name}'s codes are read, as {narrow}", f"range of {name}",
                             operands=wrap)  # fmt: skip
                clamp = partial(_clamped, name=name, low=narrow.minimum, high=narrow.maximum)
                yield Change(f"{name}'s codes are clamped to {narrow}", f"range of {name}", operands=clamp)


def _magnitude(problem: Problem, name: str) -> Problem:
    return with_operand(problem, name, np.abs(problem.a if name == "a" else problem.b))


def _clamped(problem: Problem, name: str, low: int, high: int) -> Problem:
    return with_operand(problem, name, np.clip(problem.a if name == "a" else problem.b, low, high))


def _layouts() -> Iterator[Change]:
    """Operands whose memory is read in another order; these need all of the operands."""

    def transposed(problem: Problem, name: str) -> Problem | None:
        codes = problem.a if name == "a" else problem.b
        return with_operand(problem, name, codes.T) if codes.shape[0] == codes.shape[1] > 1 else None

    def other_order(problem: Problem, name: str) -> Problem | None:
        codes = problem.a if name == "a" else problem.b
        if min(codes.shape) < 2 or codes.shape[0] == codes.shape[1]:
            return None
        return with_operand(problem, name, codes.reshape(codes.shape[::-1]).T)

    def swapped(problem: Problem) -> Problem | None:
        m, n = problem.shape
        c = None if problem.c is None else problem.c.T
        return problem._replace(a=problem.b.T, b=problem.a.T, c=c) if m == n > 1 else None

    def column_major(codes: Array, problem: Problem) -> Array | None:
        m, n = codes.shape
        return codes.T.reshape(m, n) if m != n and min(m, n) > 1 else None

    for name in ("a", "b"):
        text = f"{name} is read transposed"
        yield Change(text, f"layout of {name}", operands=partial(transposed, name=name), reach="operands", common=True)
        order = "column-major for row-major"
        yield Change(f"{name}'s memory is read in the wrong order ({order})", f"layout of {name}",
                     operands=partial(other_order, name=name), reach="operands")  # fmt: skip
    yield Change("the output is transposed", "layout of the output", operands=swapped, reach="operands")
    yield Change("the output is written in the wrong order (column-major for row-major)", "layout of the output",
                 codes=column_major, reach="outputs")  # fmt: skip
    for name in ("a", "b"):
        for text, stride in _strides(name):
            for modulo in (True, False):
                past = "starting again" if modulo else "zeros"
                read = partial(_strided, name=name, stride=stride, modulo=modulo)
                yield Change(f"the row stride of {name} is {text} ({past} past the end)", f"layout of {name}",
                             operands=read, reach="operands")  # fmt: skip


def _strides(name: str) -> Iterator[tuple[str, Callable[[int, int, int], int]]]:
    """(M, K, N) to a stride that somebody may have taken for the right one."""
    if name == "a":
        yield "N and not K", lambda m, k, n: n
        yield "M and not K", lambda m, k, n: m
    else:
        yield "K and not N", lambda m, k, n: k
        yield "M and not N", lambda m, k, n: m
    own: Callable[[int, int], int] = (lambda k, n: k) if name == "a" else (lambda k, n: n)
    yield "one too large", lambda m, k, n: own(k, n) + 1
    yield "one too small", lambda m, k, n: own(k, n) - 1
    for tile in (4, 8, 16, 32, 64, 128):
        yield f"rounded up to a multiple of {tile}", lambda m, k, n, tile=tile: own(k, n) + -own(k, n) % tile  # type: ignore[misc]


def _strided(problem: Problem, name: str, stride: Callable[[int, int, int], int], modulo: bool) -> Problem | None:
    codes = problem.a if name == "a" else problem.b
    rows, width = codes.shape
    taken = stride(problem.shape[0], problem.k, problem.shape[1])
    if taken == width or rows < 2 or taken < 1:
        return None
    flat = np.ravel(codes)
    places = np.arange(rows)[:, None] * taken + np.arange(width)
    if modulo:
        return with_operand(problem, name, flat[places % flat.size])
    inside = places < flat.size
    return with_operand(problem, name, np.where(inside, flat[np.minimum(places, flat.size - 1)], 0))


def _edges() -> Iterator[Change]:
    """Rows or columns of the output that are missing, repeated or shifted; or all of it."""
    yield Change("nothing is computed: every output is 0", "place of outputs",
                 codes=lambda codes, _: np.zeros_like(codes), common=False)  # fmt: skip
    yield Change("no product is added: every output is its start value", "place of outputs",
                 run=lambda problem: None if problem.c is None else problem.c)  # fmt: skip
    for name, what in (("a", "row"), ("b", "column")):
        for by, direction in ((1, "down" if name == "a" else "right"), (-1, "up" if name == "a" else "left")):
            yield Change(f"the {what}s of the output are shifted by one {direction}", "place of outputs",
                         operands=partial(_moved, name=name, by=by), reach="operands")  # fmt: skip
        yield Change(f"the {what}s of the output are in reverse order", "place of outputs",
                     operands=partial(_repeated, name=name, tile=None), reach="operands")  # fmt: skip
        for tile in (16, 32, 64, 128, 8, 4):
            text = f"every tile of {tile} {what}s of the output repeats the first"
            yield Change(text, "place of outputs", operands=partial(_repeated, name=name, tile=tile),
                         reach="operands")  # fmt: skip
        yield Change(f"the last {what} of the output is 0", "place of outputs",
                     operands=partial(_blank, name=name, tile=None), reach="operands")  # fmt: skip
        for tile in (16, 32, 64, 128, 8, 4, 256):
            text = f"the {what}s of the output beyond the last multiple of {tile} are 0"
            yield Change(text, "place of outputs", operands=partial(_blank, name=name, tile=tile),
                         reach="operands")  # fmt: skip


def _moved(problem: Problem, name: str, by: int) -> Problem | None:
    axis = 0 if name == "a" else 1
    if problem.shape[axis] < 2:
        return None
    c = None if problem.c is None else np.roll(problem.c, by, axis=axis)
    codes = np.roll(problem.a if name == "a" else problem.b, by, axis=axis)
    return with_operand(problem._replace(c=c), name, codes)


def _repeated(problem: Problem, name: str, tile: int | None) -> Problem | None:
    """Take other rows of a or columns of b, with their start values: in reverse, or those of the first tile."""
    axis = 0 if name == "a" else 1
    size = problem.shape[axis]
    if size < 2 or (tile is not None and size <= tile):
        return None
    places = np.arange(size)[::-1] if tile is None else np.arange(size) % tile
    c = None if problem.c is None else np.take(problem.c, places, axis=axis)
    return with_operand(problem._replace(c=c), name, np.take(problem.a if name == "a" else problem.b, places, axis))


def _blank(problem: Problem, name: str, tile: int | None) -> Problem | None:
    axis = 0 if name == "a" else 1
    size = problem.shape[axis]
    first = size - 1 if tile is None else size - size % tile
    if first >= size or (tile is None and size < 2):
        return None
    gone = (slice(first, None),) if axis == 0 else (slice(None), slice(first, None))
    codes = (problem.a if name == "a" else problem.b).copy()
    codes[gone] = 0
    c = None if problem.c is None else problem.c.copy()
    if c is not None:
        c[gone] = 0
    return with_operand(problem._replace(c=c), name, codes)

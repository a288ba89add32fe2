"""Checks the arguments of functions that make calls. It inspects these functions, which must not be compiled."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Collection
from functools import lru_cache, wraps
from struct import error as StructError  # noqa: N812 - struct's own name is too general
from typing import Any, ParamSpec, TypeVar, cast

from ._call import Call, is_flag
from ._errors import InvalidArgument

T = TypeVar("T")
P = ParamSpec("P")


def checked(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """Turns protobuf's and struct's errors about an argument that does not fit into InvalidArgument, and refuses None.

    To protobuf None means a field's default: GSI 0, say, which the caller did not mean. None is allowed for an
    argument whose default is None.
    """

    # Positions and names of the arguments that are False or True: Python takes any value for one of them.
    code = make.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    flags = {name: at for at, name in enumerate(names) if make.__annotations__.get(name) == "bool"}

    @lru_cache(1)
    def optional() -> frozenset[str]:
        return frozenset(name for name, one in inspect.signature(make).parameters.items() if one.default is None)

    @wraps(make)
    def make_checked(*args: P.args, **kwargs: P.kwargs) -> Call[T]:
        try:
            if None in args or (kwargs and any(v is None and k not in optional() for k, v in kwargs.items())):
                raise ValueError("None is not allowed")
            for name, at in flags.items():
                if not is_flag(args[at] if at < len(args) else kwargs.get(name, False)):
                    raise ValueError(f"{name} is neither False nor True")
            return make(*args, **kwargs)
        except (ValueError, TypeError, AttributeError, LookupError, StructError) as error:
            raise _refused(make, optional(), flags, args, kwargs, error) from None

    return make_checked


def checked_and_kept(make: Callable[P, Call[T]]) -> Callable[P, Call[T]]:
    """As checked(), and keeps the calls: for those that are made again and again with the same arguments."""
    return cast(Callable[P, Call[T]], wraps(make)(lru_cache(1024, typed=True)(checked(make))))


def _refused(
    make: Callable[..., object],
    optional: frozenset[str],
    flags: Collection[str],
    args: Any,
    kwargs: Any,
    error: Exception,
) -> InvalidArgument:
    """The error that names the wrong argument; otherwise all arguments, and the original complaint."""
    from ._arguments import what_is_wrong

    signature = inspect.signature(make)
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as unbound:  # An argument too many, or a missing one.
        return InvalidArgument(errno.EINVAL, f"{make.__name__}{signature.replace(return_annotation=Any)}: {unbound}")
    why = what_is_wrong(make.__name__, arguments, optional, flags)
    if why is not None:
        return InvalidArgument(errno.EINVAL, f"{make.__name__}: {why}")
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return InvalidArgument(errno.EINVAL, f"{make.__name__}({given:.200}): {error!s:.200}")

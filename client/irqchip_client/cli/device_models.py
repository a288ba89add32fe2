"""Finds the device class that a command line names, and the arguments of its constructor."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import runpy
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

import irqchip_client

if TYPE_CHECKING:
    from irqchip_client.devices import Device

_READABLE = (bool, int, float, str)  # the types of arguments on a command line, the narrowest first
_MISSING = inspect.Parameter.empty


def find_model(model: str) -> type[Device]:
    """The class that MODEL names. BadParameter lists the known classes."""
    where, _, name = model.rpartition(":")
    if model.endswith(".py"):
        raise _refused(f"{model} names no class. {_classes_of(model, _load(model))}")
    if not where:
        return _packaged(name)
    found = _load(where)
    if name not in found:
        near = _nearest(name, _devices_in(found))
        raise _refused(f"{where} has no {name}. {_classes_of(where, found)}{near}")
    cls = found[name]
    if not _is_device(cls):
        raise _refused(f"{model} is no class of irqchip_client.devices.Device. {_classes_of(where, found)}")
    return typing.cast("type[Device]", cls)


def _packaged(name: str) -> type[Device]:
    models = _models()
    if name not in models:
        raise _refused(f"there is no {name!r:.100}. {_choices()}{_nearest(name, models)}")
    return models[name]


def _models() -> dict[str, type[Device]]:
    from irqchip_client import devices

    return {each: getattr(devices, each) for each in devices.__all__ if _is_device(getattr(devices, each))}


def _choices() -> str:
    return f"Use {', '.join(sorted(_models(), key=str.lower))}, or your own: FILE.py:CLASS or MODULE:CLASS."


def _load(where: str) -> dict[str, Any]:
    """The names that a file or module defines."""
    try:
        if where.endswith(".py"):
            sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
            return runpy.run_path(where)
        sys.path.insert(0, "")
        return vars(importlib.import_module(where))
    except OSError as error:
        if error.filename is not None and os.path.abspath(error.filename) == os.path.abspath(where):
            raise _refused(f"{where} can't be read: {error.strerror}; check the path. {_choices()}") from error
        raise _broken(where, error) from error
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise _refused(f"there is no module {where}. {_choices()}") from error
        raise _broken(where, error) from error
    except Exception as error:
        raise _broken(where, error) from error


def _broken(where: str, error: Exception) -> click.ClickException:
    return click.ClickException(f"{where} can't be loaded:\n{own_traceback(error)}")


def own_traceback(error: BaseException) -> str:
    """A traceback without the frames of this command and of Python's import."""
    frames = traceback.extract_tb(error.__traceback__)
    callers = [
        at
        for at, frame in enumerate(frames, 1)
        if frame.filename == __file__ or "<frozen" in frame.filename or frame.name == "_construct"
    ]
    lines = traceback.format_list(frames[max(callers, default=0) :]) + traceback.format_exception_only(error)
    return "".join(lines).rstrip()


def _is_device(thing: object) -> bool:
    from irqchip_client.devices import Device

    return inspect.isclass(thing) and issubclass(thing, Device) and thing is not Device


def _devices_in(found: dict[str, Any]) -> list[str]:
    """The names of the classes that a file or module itself defines."""
    home = found.get("__name__")
    return [name for name, thing in found.items() if _is_device(thing) and thing.__module__ == home]


def _classes_of(where: str, found: dict[str, Any]) -> str:
    names = [f"{where}:{name}" for name in _devices_in(found)]
    if not names:
        return "It has no class of irqchip_client.devices.Device."
    return f"Its devices: {', '.join(names)}."


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {each.lower(): each for each in names}
    near = difflib.get_close_matches(name.lower(), by_lower, 1)
    return f" Did you mean {by_lower[near[0]]}?" if near else ""


def _refused(why: str) -> click.BadParameter:
    return click.BadParameter(why, param_hint="MODEL")


# Arguments.


def read_parameters(cls: type[Device], given: Sequence[str], ours: Iterable[str]) -> dict[str, Any]:
    """The constructor's arguments from NAME=VALUEs, each read by its annotation.

    BadParameter names the wrong argument.

    ours  arguments that the command gives itself; the user may leave them out
    """
    takes = inspect.signature(cls).parameters
    hints = _hints_of(cls)
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    allowed = {
        name: parameter
        for name, parameter in takes.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (name not in hints or any(kind in _READABLE for kind in _kinds(hints[name])))
    }
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(
                f"{text!r:.100} is no NAME=VALUE: write one. {_list(cls, allowed, ours)}",
                param_hint="NAME=VALUE",
            )
        if name in values:
            raise click.BadParameter("given twice: leave one out", param_hint=f"{name}=")
        if name not in allowed and (name in takes or not anything):
            near = _nearest(name, allowed)
            raise click.BadParameter(
                f"{cls.__name__} takes no {name}=. {_list(cls, allowed, ours)}.{near}", param_hint="NAME=VALUE"
            )
        values[name] = _read(name, value, hints.get(name), takes[name].default if name in takes else _MISSING)
    missing = [
        name
        for name, parameter in takes.items()
        if parameter.default is _MISSING
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in values
        and name not in ours
    ]
    if missing:
        needs = ", ".join(f"{name}=" for name in missing)
        raise click.BadParameter(
            f"{cls.__name__} needs {needs}: add {missing[0]}=VALUE. {_list(cls, allowed, ours)}",
            param_hint="NAME=VALUE",
        )
    return values


def make(cls: type[Device], values: dict[str, Any]) -> Device:
    """The device. Its constructor's exception becomes an error of the command line, or shows its traceback."""
    try:
        return cls(**values)
    except irqchip_client.NotFound as error:
        hint = ", or with --create SIZE" if cls in (_models()["BlockDevice"], _models()["VirtioBlock"]) else ""
        raise click.ClickException(f"{cls.__name__} can't be made: {error.message}{hint}") from error
    except (irqchip_client.InvalidArgument, TypeError, ValueError) as error:
        raise click.BadParameter(
            f"{cls.__name__} cannot be made with these arguments: {getattr(error, 'message', error)}",
            param_hint="NAME=VALUE",
        ) from error
    except irqchip_client.IrqchipError as error:
        raise click.ClickException(f"{cls.__name__} can't be made: {error.message}") from error
    except OSError as error:
        if error.filename is None:
            raise click.ClickException(f"{cls.__name__} can't be made:\n{own_traceback(error)}") from error
        raise click.ClickException(f"{cls.__name__} can't be made: {error.filename}: {error.strerror}") from error
    except Exception as error:
        raise click.ClickException(f"{cls.__name__} can't be made:\n{own_traceback(error)}") from error


def _hints_of(cls: type[Device]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except Exception:  # Annotations may name imports that only a type checker sees.
        return {
            name: parameter.annotation
            for name, parameter in inspect.signature(cls).parameters.items()
            if parameter.annotation in _READABLE
        }


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _read(name: str, text: str, hint: Any, default: Any) -> Any:
    kinds = _kinds(hint)
    if hint is None:  # without an annotation: as the default's type, or by the text's form
        kinds = (type(default),) if isinstance(default, _READABLE) else _READABLE
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in _READABLE:
        if kind in kinds:
            try:
                return _as(kind, text)
            except ValueError:
                continue
    wanted = [_WANTED[kind] for kind in _READABLE if kind in kinds]
    raise click.BadParameter(f"{text!r:.100} is not {' or '.join(wanted)}", param_hint=f"{name}=")


_WANTED: dict[type, str] = {
    bool: "true or false",
    int: "a whole number: write 16, 0x10 or 0b10000",
    float: "a number: write 0.5 or 2",
    str: "a text",
}


def _as(kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    return int(text, 0) if kind is int else kind(text)


def _list(cls: type[Device], allowed: dict[str, inspect.Parameter], ours: Iterable[str]) -> str:
    shown = [
        f"{name}=" if parameter.default is _MISSING else f"{name}={_show(parameter.default)}"
        for name, parameter in allowed.items()
        if name not in ours
    ]
    return f"Arguments of {cls.__name__}: {' '.join(shown)}" if shown else f"{cls.__name__} takes nothing"


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int) and default >= 0x40:
        return f"{default:#x}"
    return str(default)

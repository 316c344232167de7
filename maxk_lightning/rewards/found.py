"""From a text in the configuration to the function, class or object that it names."""

import importlib
import inspect
import os
import sys
from types import ModuleType
from typing import Any


def find(path: str, key: str) -> Any:
    """What an import path (`module.name`) names; modules in the working directory are found too.

    Raises:
        ValueError: no such module, the module fails, or nothing of this name is in it; names the configuration key.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ValueError(f"{key} is {path!r}, must be module.name, such as my_module.my_function")
    module = _import(module_name, path, key)
    if not hasattr(module, name):
        raise ValueError(f"{key} is {path!r}, but module {module_name} ({_file(module)}) has no {name}{_offer(module)}")
    return getattr(module, name)


def _import(module_name: str, path: str, key: str) -> ModuleType:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(
                f"{key} is {path!r}, but module {module_name} needs one that is missing: {error}"
            ) from error
        raise ValueError(
            f"{key} is {path!r}, but there is no module {error.name} in the working directory or on PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the user's module raises while it is imported
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{key} is {path!r}, but module {module_name} cannot be imported ({what})") from error


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"


def _offer(module: ModuleType) -> str:
    """The functions and classes that are defined in a module."""
    names = [
        name
        for name, value in vars(module).items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
    ]
    return f"; it has {', '.join(names)}" if names else ""

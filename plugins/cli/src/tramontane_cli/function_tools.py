"""``--tool MODULE:FUNCTION``: a Python function as a tool, told by its signature and docstring."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from attrs import frozen

from tramontane.errors import SourceError

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@frozen
class FunctionTool:
    """A function that a model may call.

    Attributes:
        name: the function's.
        schema: OpenAI's form of it.
        adapter: pydantic's, which checks arguments against the annotations and calls it.
    """

    name: str
    schema: Mapping[str, Any]
    adapter: Any

    @classmethod
    def named(cls, place: str) -> FunctionTool:
        """The function that ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION`` names.

        Raises:
            SourceError: there is none, or it cannot be a tool.
        """
        module, colon, name = place.rpartition(":")
        if not colon or not module or not name:
            raise SourceError(f"--tool {place}: write MODULE:FUNCTION, or FILE.py:FUNCTION")
        function = getattr(_module(module), name, None)
        if function is None:
            raise SourceError(f"--tool {place}: {module} has no {name!r}")
        return cls.of(function, f"--tool {place}")

    @classmethod
    def of(cls, function: Callable[..., Any], where: str) -> FunctionTool:
        """``where`` is named in errors.

        Raises:
            SourceError: it is no function, or has parameters that cannot be told to a model.
        """
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        if not inspect.isroutine(function):
            raise SourceError(f"{where} is no function but {type(function).__name__}")
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in NAMED:
                raise SourceError(
                    f"{where}: parameter {parameter} cannot be given by name; a tool's can"
                )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(cast(Any, function))
            schema = adapter.json_schema(schema_generator=_untitled())
        # An annotation that does not exist, or stands for what no JSON can say.
        except (PydanticUserError, NameError) as error:
            why = str(error).partition("\n")[0]
            raise SourceError(
                f"{where}: its annotations cannot be told to a model: {why}"
            ) from error
        description, meanings = _described(function)
        for name, meaning in meanings.items():
            if name in schema.get("properties", {}):
                schema["properties"][name].setdefault("description", meaning)
        told = {"name": function.__name__, "description": description, "parameters": schema}
        return cls(function.__name__, {"type": "function", "function": told}, adapter)

    def __call__(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call it with what the model wrote.

        Raises:
            TypeError: the arguments do not fit its signature.
        """
        from pydantic import ValidationError
        from pydantic_core import ArgsKwargs

        try:
            return self.adapter.validate_python(ArgsKwargs((), dict(arguments)))
        except ValidationError as error:
            told = error.errors(include_url=False, include_input=False)
            raise TypeError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in told)
            ) from error


def _module(name: str) -> ModuleType:
    """A module by its name, looked for in this directory too, or by its file."""
    try:
        if name.endswith(".py"):
            return _file_module(Path(name))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(name)
    # A module does what it likes when imported; none of it is a defect of ours.
    except Exception as error:
        raise SourceError(
            f"--tool: {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _file_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None, "a .py file has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


def _described(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a docstring says of a function and of its parameters."""
    from docstring_parser import parse

    said = parse(inspect.getdoc(function) or "")
    parts = (said.short_description, said.long_description)
    meanings = {one.arg_name: one.description for one in said.params if one.description}
    return "\n\n".join(filter(None, parts)), meanings


def _untitled() -> Any:
    """Generates schemas without titles, which repeat the names and cost tokens."""
    from pydantic.json_schema import GenerateJsonSchema

    class Untitled(GenerateJsonSchema):
        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    return Untitled

"""Reads the pickles and torch files of other people's avatars without unpickling them.

An interpreter of the few pickle instructions that such files consist of. It builds lists, tuples, dicts, numbers,
strings, bytes and tensors, and calls nothing that a file names: a global is only a name here, and one that is not in
the table below ends the reading. Neither `pickle` nor torch is imported. Every size is checked before it is believed.

Knows values, not what they mean: that is avatar_prep.imported.
"""

import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lipserve.errors import NotImportable, UnsafePickle

MAX_PICKLE_BYTES = 32 * 2**20
MAX_STEPS = 5_000_000  # instructions, and elements that one instruction makes
MAX_DEPTH = 16  # containers within containers
MAX_NUMBER_BYTES = 8  # of a pickled integer of any length
MAX_DICT = 1000
MAX_DIMENSIONS = 8

_NUMPY_TYPE = re.compile(r"[iu][1248]|f[248]|b1")
_TORCH_TYPES = {"FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bf16"}
_ITEM_BYTES = {"f4": 4, "f2": 2, "bf16": 2}
_KEY = re.compile(r"[0-9]{1,9}")
_LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the magic number that torch.save began with until 1.5

_HINT = "Only data may be in it: lists, tuples and dicts of numbers, strings and tensors. Do not load it elsewhere."
_COPY_HINT = "Copy it again from where it was made, or prepare the avatar from its video with `lipserve prepare`."


@dataclass(frozen=True)
class _Name:
    """A global that the file may name. It stands for itself; nothing is imported."""

    module: str
    name: str


_MARK, _NULL = object(), object()


@dataclass
class _NumpyType:
    """A dtype under construction: its byte order comes in a second step."""

    code: str
    order: str = "<"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array(list[Any]):
    """A numpy array as nested lists; filled in a second step, once."""

    filled = False


@dataclass(frozen=True)
class _Storage:
    """float32 or float16 (n,): the memory of one or more tensors."""

    values: NDArray[Any]


class _Reader:
    """One pickle. `storage` finds the memory that a persistent id of torch means; without it there is none."""

    def __init__(self, name: str, storage: Callable[[object], _Storage] | None = None) -> None:
        self._name, self._storage = name, storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._steps = MAX_STEPS
        self._calls: dict[tuple[str, str], Callable[..., Any]] = {
            ("_codecs", "encode"): self._encode,
            ("collections", "OrderedDict"): self._ordered_dict,
            ("numpy", "dtype"): self._numpy_type,
        }
        for package in ("numpy.core", "numpy._core"):
            self._calls[f"{package}.multiarray", "scalar"] = self._numpy_scalar
            self._calls[f"{package}.multiarray", "_reconstruct"] = self._empty_array
            self._calls[f"{package}.numeric", "_frombuffer"] = self._array
        self._names = {*self._calls, ("numpy", "ndarray")}
        if storage is not None:
            self._calls["torch._utils", "_rebuild_tensor_v2"] = self._tensor
            self._names |= {("torch._utils", "_rebuild_tensor_v2"), *(("torch", name) for name in _TORCH_TYPES)}

    def read(self, data: bytes) -> Any:
        """The pickled value. Raises NotImportable, or UnsafePickle for whatever is not plain data."""
        try:
            for opcode, argument, _ in pickletools.genops(data):
                self._spend(1)
                if opcode.name == "STOP":
                    value = self._stack.pop()
                    if self._stack:
                        raise ValueError("it ends in the middle")
                    self._require_plain(value)
                    return value
                self._step(opcode.name, argument)
        except (IndexError, KeyError, TypeError) as exc:
            raise _damaged(self._name, "its instructions do not fit together") from exc
        except (ValueError, OverflowError, struct.error) as exc:
            raise _damaged(self._name, exc) from exc
        raise _damaged(self._name, "it has no end")

    def _refuse(self, what: str) -> NoReturn:
        raise UnsafePickle(f"{self._name} {what}, which is no part of an avatar.", _HINT)

    def _spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            self._refuse(f"has more than {MAX_STEPS} elements")

    def _require_plain(self, value: Any) -> None:
        """No half-built part left in it, and no container too deep (or within itself)."""
        level = [value]
        for _ in range(MAX_DEPTH):
            for item in level:
                if isinstance(item, _Name | _NumpyType | _Storage) or item is _MARK or item is _NULL:
                    self._refuse("contains a part that is no value")
                if isinstance(item, _Array) and not item.filled:
                    raise ValueError("an array without content")
            inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, list | tuple | dict))
            level = list(islice(chain.from_iterable(inner), self._steps + 1))
            self._spend(len(level))
            if not level:
                return
        self._refuse(f"nests more than {MAX_DEPTH} containers")

    # -- instructions -------------------------------------------------------------------------------------------------

    def _step(self, name: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                push(argument)
            case "LONG1" | "LONG4":
                if argument.bit_length() >= MAX_NUMBER_BYTES * 8:
                    raise ValueError("a number far too large")
                push(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                push(argument)
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(bytes(argument))
            case "MARK":
                push(_MARK)
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT":
                push({"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict}[name]())
            case "LIST" | "TUPLE":
                push((list if name == "LIST" else tuple)(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._take(int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = [self._value()] if name == "APPEND" else self._since_mark()
                self._top(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = self._take(2) if name == "SETITEM" else self._since_mark()
                self._set_items(items)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                push(self._global(*(argument.split(" ", 1) if name == "GLOBAL" else self._take(2))))
            case "REDUCE":
                arguments, function = self._value(), pop()
                call = self._calls.get((function.module, function.name)) if isinstance(function, _Name) else None
                if call is None or type(arguments) is not tuple:
                    self._refuse("calls what cannot be called")
                push(call(*arguments))
            case "BUILD":
                state, target = self._value(), self._stack[-1]
                self._build(target, state)
            case "BINPERSID":
                if self._storage is None:
                    self._refuse("refers to something outside itself")
                push(self._storage(self._value()))
            case _:
                self._refuse(f"has the pickle instruction {name}")

    def _value(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("an instruction without its operand")
        return value

    def _take(self, count: int) -> list[Any]:
        return [self._value() for _ in range(count)][::-1]

    def _since_mark(self) -> list[Any]:
        items = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise ValueError(f"no {kind.__name__} where one should be")
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError("a dict's key that is neither string nor number")
            target[key] = value
        if len(target) > MAX_DICT:
            raise ValueError("a dict far too large")

    def _global(self, module: Any, name: Any) -> _Name:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a global without a name")
        if (module, name) not in self._names:
            self._refuse(f"asks for {f'{module}.{name}'[:100]!r}")
        return _Name(module, name)

    # -- what the known names build ----------------------------------------------------------------------------------

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How protocol 2 spells bytes."""
        if type(text) is not str or encoding != "latin1":
            raise ValueError("bytes in a strange encoding")
        self._spend(len(text))
        return text.encode(encoding)

    def _ordered_dict(self) -> dict[Any, Any]:
        return {}

    def _numpy_type(self, code: str, align: bool = False, copy: bool = True) -> _NumpyType:
        if type(code) is not str:
            raise ValueError("a numpy type without a name")
        if not _NUMPY_TYPE.fullmatch(code):
            self._refuse(f"has values of the numpy type {code[:20]!r}")
        return _NumpyType(code)

    def _build(self, target: Any, state: Any) -> None:
        if isinstance(target, _NumpyType):
            if type(state) is not tuple or len(state) < 5 or state[2:5] != (None, None, None):
                self._refuse("has a numpy type with parts")
            if state[1] not in ("<", ">", "|", "="):
                raise ValueError("a numpy type without a byte order")
            target.order = state[1]
        elif isinstance(target, _Array) and not target.filled:
            _, shape, dtype, fortran, data = state
            target.extend(self._array(data, dtype, shape, "F" if fortran else "C"))
            target.filled = True
        else:
            self._refuse("sets the state of an object")

    def _numpy_scalar(self, dtype: _NumpyType, data: bytes) -> int | float | bool:
        if not isinstance(dtype, _NumpyType) or type(data) is not bytes or len(data) != dtype.dtype.itemsize:
            self._refuse("has a numpy number that is none")
        return np.frombuffer(data, dtype.dtype)[0].item()  # type: ignore[no-any-return]

    def _empty_array(self, kind: _Name, shape: tuple[int], code: bytes) -> _Array:
        if kind != _Name("numpy", "ndarray"):
            self._refuse("has an array that is none")
        return _Array()

    def _array(self, data: bytes, dtype: _NumpyType, shape: tuple[int, ...], order: str = "C") -> _Array:
        if not isinstance(dtype, _NumpyType) or type(data) is not bytes or order not in ("C", "F"):
            self._refuse("has an array that is none")
        if not _counts(shape) or not 1 <= len(shape) <= MAX_DIMENSIONS:
            raise ValueError("an array without a proper shape")
        self._spend(len(data))
        array = _Array(np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").tolist())
        array.filled = True
        return array

    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> NDArray[Any]:
        """A read-only view into its storage: a tensor that claims to be huge costs nothing."""
        if not isinstance(storage, _Storage):
            self._refuse("has a tensor without memory")
        if not _counts((offset,)) or not _counts(size) or not _counts(stride) or not 1 <= len(size) <= MAX_DIMENSIONS:
            raise ValueError("a tensor without a proper shape")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size or last >= storage.values.size:
            raise ValueError("a tensor that reaches past its memory")
        steps = [step * storage.values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage.values[offset:], size, steps, writeable=False)


def _damaged(name: str, reason: Exception | str) -> NotImportable:
    first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return NotImportable(f"{name} is damaged: {first_line[:100]}.", _COPY_HINT)


def _counts(value: Any) -> bool:
    """Whether it is a tuple of sizes."""
    return type(value) is tuple and all(type(item) is int and 0 <= item < 2**31 for item in value)


def read_pickle(file: Path, max_bytes: int = MAX_PICKLE_BYTES) -> Any:
    """The plain value in a pickle file. Raises NotImportable or UnsafePickle."""
    return _Reader(file.name).read(_content(file, max_bytes))


def _content(file: Path, max_bytes: int) -> bytes:
    _require_size(file, max_bytes)
    return file.read_bytes()


def _require_size(file: Path, max_bytes: int) -> None:
    if not file.is_file():
        raise NotImportable(f"{file.name} is not there, or is no file.", _COPY_HINT)
    if (size := file.stat().st_size) > max_bytes:
        message = f"{file.name} has {size} bytes, more than the {max_bytes} that such a file can need."
        raise NotImportable(message, _COPY_HINT)


# -- torch.save -------------------------------------------------------------------------------------------------------


def read_tensors(file: Path, max_bytes: int, max_entries: int) -> Any:
    """The value in a file of torch.save (the zip that torch 1.6 and later write), without torch.

    Its tensors are read-only numpy arrays: float16, or float32, also of bfloat16. Raises NotImportable or UnsafePickle.
    """
    _require_size(file, max_bytes)
    with file.open("rb") as handle:
        start = handle.read(len(_LEGACY_TORCH))
        if start == _LEGACY_TORCH:
            hint = "Load and save it once with torch 1.6 or later, whose torch.save writes a zip."
            raise NotImportable(f"{file.name} has the form that torch.save wrote before torch 1.6.", hint)
        if not start.startswith(b"PK\3\4"):
            raise NotImportable(f"{file.name} is no file of torch.save.", _COPY_HINT)
        handle.seek(0)
        # Each entry of a zip's directory begins so; counted before the directory is believed and built.
        if sum(block.count(b"PK\1\2") for block in iter(lambda: handle.read(2**20), b"")) > max_entries:
            raise NotImportable(f"{file.name} has more than {max_entries} entries.", _COPY_HINT)
    try:
        with zipfile.ZipFile(file) as archive:
            torch_file = _TorchFile(file, archive)
            return _Reader(file.name, torch_file.storage).read(torch_file.entry("data.pkl", MAX_PICKLE_BYTES))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError, struct.error) as exc:
        raise _damaged(file.name, exc) from exc


@dataclass
class _TorchFile:
    """The zip of torch.save: `<any>/data.pkl`, and the tensors' memory in `<any>/data/<number>`, uncompressed."""

    file: Path
    archive: zipfile.ZipFile
    _entries: dict[str, zipfile.ZipInfo] = field(init=False)
    _storages: dict[tuple[str, str], _Storage] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        entries = self.archive.infolist()
        name = self.file.name
        tops = set()
        for entry in entries:
            top, *rest = entry.filename.split("/")
            if not top or not rest or ".." in (top, *rest) or "\\" in entry.filename or "\0" in entry.orig_filename:
                raise UnsafePickle(f"{name} has an entry called {entry.filename[:100]!r}.", _HINT)
            if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise UnsafePickle(f"{name} is compressed, which torch.save never does.", _HINT)
            if entry.flag_bits & 1:
                raise NotImportable(f"{name} is encrypted.", _COPY_HINT)
            tops.add(top)
        if len(tops) != 1 or len({entry.filename for entry in entries}) != len(entries):
            raise UnsafePickle(f"{name} is not laid out as torch.save does.", _HINT)
        if sum(entry.file_size for entry in entries) > self.file.stat().st_size:
            raise UnsafePickle(f"{name} claims to hold more than its own size.", _HINT)
        self._entries = {entry.filename.partition("/")[2]: entry for entry in entries}

    def entry(self, name: str, max_bytes: int) -> bytes:
        if name not in self._entries:
            raise _damaged(self.file.name, f"it has no {name}")
        if self._entries[name].file_size > max_bytes:
            raise _damaged(self.file.name, f"its {name} has more than {max_bytes} bytes")
        return self.archive.read(self._entries[name])

    def storage(self, key: object) -> _Storage:
        """For the persistent id ("storage", type, key, location, number of elements)."""
        if type(key) is not tuple or len(key) != 5 or key[0] != "storage" or not isinstance(key[1], _Name):
            raise UnsafePickle(f"{self.file.name} refers to something outside itself.", _HINT)
        _, kind, number, _, elements = key
        code = _TORCH_TYPES.get(kind.name)
        if code is None or type(number) is not str or not _KEY.fullmatch(number) or not _counts((elements,)):
            raise UnsafePickle(f"{self.file.name} refers to a memory that is none.", _HINT)
        if (number, code) not in self._storages:
            expected = elements * _ITEM_BYTES[code]
            data = self.entry(f"data/{number}", expected)
            if len(data) != expected:
                raise _damaged(self.file.name, f"data/{number} has another size than its tensors say")
            self._storages[number, code] = _Storage(self._decode(data, code))
        found = self._storages[number, code]
        if found.values.size != elements:
            raise _damaged(self.file.name, f"data/{number} has another size than its tensors say")
        return found

    def _decode(self, data: bytes, code: str) -> NDArray[Any]:
        big = "byteorder" in self._entries and self.entry("byteorder", 16) == b"big"
        order = ">" if big else "<"
        if code != "bf16":
            return np.frombuffer(data, order + code)
        return (np.frombuffer(data, order + "u2").astype(np.uint32) << 16).view(np.float32)

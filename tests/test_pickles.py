"""Pickles and torch files from outside: what plain data gives, and that everything else is refused and never runs."""

import builtins
import collections
import functools
import operator
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from musetalk_folder import STORAGES, list_pickle, tensor_pickle, write_tensors, write_zip

from avatar_prep import pickles
from avatar_prep.pickles import read_pickle, read_tensors
from lipserve.errors import NotImportable, UnsafePickle

PROTOCOLS = (2, 3, 4, 5)


def file_of(folder: Path, data: bytes) -> Path:
    (folder / "coords.pkl").write_bytes(data)
    return folder / "coords.pkl"


def read(folder: Path, data: bytes) -> Any:
    return read_pickle(file_of(folder, data))


# -- plain data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values(protocol: int, tmp_path: Path) -> None:
    value = [(1, -2, 300, 70000, 2**40, -(2**62)), [1.5, True, None], {"a": (), 3: "ö"}, b"\x00\xff", []]
    assert read(tmp_path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_numbers(protocol: int, tmp_path: Path) -> None:
    kinds = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint32, np.float16, np.float32, np.float64)
    value = [(kind(7), 7) for kind in kinds] + [np.int32(-5), np.bool_(True)]
    found = read(tmp_path, pickle.dumps(value, protocol))
    assert found == [(7, 7)] * len(kinds) + [-5, True]
    assert {type(item) for pair in found[: len(kinds)] for item in pair} == {int, float}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_arrays_become_lists(protocol: int, tmp_path: Path) -> None:
    grid = np.arange(6).reshape(2, 3)
    value = [grid, np.asfortranarray(grid), grid.astype(">i2"), np.float32([0.5]), grid]
    rows = [[0, 1, 2], [3, 4, 5]]
    assert read(tmp_path, pickle.dumps(value, protocol)) == [rows, rows, rows, [0.5], rows]


def test_the_names_of_numpy_1_and_2_are_the_same(tmp_path: Path) -> None:
    data = pickle.dumps([np.int32(5), np.arange(2)], 2)
    other = data.replace(b"numpy._core", b"numpy.core")
    assert data != other
    assert read(tmp_path, data) == read(tmp_path, other) == [5, [0, 1]]


def test_one_object_twice_is_read_twice(tmp_path: Path) -> None:
    box = (1, 2, 3, 4)
    assert read(tmp_path, pickle.dumps([box, box][::-1])) == [box, box]


# -- what must never run ----------------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: object = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


TRAP = f"open({'RAN'!r}, 'w').close()"

HOSTILE: dict[str, Any] = {
    "os.system": Calls(os.system, "touch RAN"),
    "subprocess": Calls(subprocess.call, ["touch", "RAN"]),
    "eval": Calls(eval, TRAP),
    "exec": Calls(exec, TRAP),
    "import": Calls(builtins.__import__, "antigravity"),
    "getattr": Calls(getattr, Calls(builtins.__import__, "os"), "system"),
    "attrgetter": Calls(operator.attrgetter, "system"),
    "partial": Calls(functools.partial, os.system, "touch RAN"),
    "open": Calls(open, "RAN", "w"),
    "bytearray": Calls(bytearray, 2**33),
    "map": Calls(map, eval, [TRAP]),
    "a class of numpy": Calls(np.memmap, "RAN", "u1", "w+", 0, (9,)),
    "a function of numpy": Calls(np.load, "RAN"),
    "a counter": collections.Counter("aa"),
    "in a list": [(1, 2, 3, 4), Calls(os.system, "touch RAN")],
    "as a state": Calls(collections.OrderedDict, state=Calls(os.system, "touch RAN")),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_and_do_not_run(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = file_of(tmp_path, pickle.dumps(HOSTILE[name], protocol))
    before = set(sys.modules)
    with pytest.raises(UnsafePickle) as caught:
        read_pickle(file)
    assert (caught.value.kind, caught.value.status) == ("unsafe_pickle", 422)
    assert [entry.name for entry in tmp_path.iterdir()] == ["coords.pkl"]
    assert "antigravity" not in set(sys.modules) - before


def test_the_trap_itself_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(HOSTILE["eval"]))
    assert (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (pickle.dumps(Calls(os.system, "true"), 2), f"'{os.system.__module__}.system'"),
        (pickle.dumps(Calls(eval, "1")), "'builtins.eval'"),
        (b"\x80\x02cos\nsystem\n.", "'os.system'"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "'os.system'"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x0dOrderedDict.x\x93.", "'collections.OrderedDict.x'"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.", "'torch._utils._rebuild_tensor_v2'"),
        (b"\x80\x02cnumpy\nlongdouble\n.", "'numpy.longdouble'"),
        (b"\x80\x02c" + b"a" * 500 + b"\nb\n.", "'" + "a" * 100 + "'"),
    ],
)
def test_a_global_is_refused_by_its_name(data: bytes, named: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafePickle) as caught:
        read(tmp_path, data)
    assert caught.value.message == f"coords.pkl asks for {named}, which is no part of an avatar."


NDARRAY, RECONSTRUCT = b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n"
INT64 = b"cnumpy\ndtype\nX\x02\x00\x00\x00i8\x89\x88\x87R"


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(np.array([None, {}], object), 2),  # _reconstruct with objects
        pickle.dumps(np.array([None, {}], object), 5),
        pickle.dumps(np.zeros(2, "i4,f4"), 2),  # a structured type
        pickle.dumps(np.datetime64(0, "s"), 2),
        pickle.dumps(np.str_("x"), 2),
        b"\x80\x02" + RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R.",  # an array that is never filled
        b"\x80\x02" + RECONSTRUCT + b"ccollections\nOrderedDict\n" + b"K\x00\x85C\x01b\x87R.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n" + INT64 + b"C\x04\x00\x00\x00\x00\x86R.",  # too few bytes
        b"\x80\x02cnumpy.core.multiarray\nscalar\nK\x05C\x01\x00\x86R.",
        b"\x80\x02" + INT64 + b".",  # a part is no value
        b"\x80\x02](" + INT64 + b"e.",
        b"\x80\x02ccollections\nOrderedDict\n.",
        b"\x80\x02" + NDARRAY + b")R.",  # a name that nobody may call
        b"\x80\x02K\x01)R.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02(icollections\nOrderedDict\n.",  # INST
        b"\x80\x02(ccollections\nOrderedDict\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8f.",  # EMPTY_SET
        b"\x80\x05\x97.",  # NEXT_BUFFER
        b"\x80\x02]}b.",  # BUILD on a list
        b"\x80\x02}}X\x01\x00\x00\x00ab.",
        b"\x80\x02X\x01\x00\x00\x000Q.",  # a persistent id where there is none
        b"P0\n.",
        b"S'x'\n.",
        b"\x80\x02(.",
    ],
)
def test_parts_put_together_in_other_ways_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotImportable):
        read(tmp_path, data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        b"\x80\x02]",
        b"\x80\x02.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02e.",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01a.",
        b"\x80\x02)R.",
        b"\x80\x02X\xff\xff\xff\x7fab.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02](K\x01}e(" + b"ts.",
        b"\x80\x04K\x01K\x02\x93.",
        pickle.dumps([(1, 2, 3, 4)] * 9)[:-7],
        pickle.dumps(2**64),
        pickle.dumps({i: i for i in range(1001)}),
        pickle.dumps({(1,): 1}),
        pickle.dumps({1.5: 1}),
    ],
)
def test_damaged_pickles_are_said_to_be(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(NotImportable, match="is damaged") as caught:
        read(tmp_path, data)
    assert caught.value.hint


def test_every_cut_and_every_flipped_byte_ends_in_an_error_of_ours_or_in_plain_data(tmp_path: Path) -> None:
    whole = pickle.dumps([(np.int32(1), 2, np.int64(3), 4), np.arange(3), {"a": 1.5}])
    for end in range(len(whole)):
        with pytest.raises(NotImportable):
            read(tmp_path, whole[:end])
    for place in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            data = bytearray(whole)
            data[place] ^= flip
            try:
                value = read(tmp_path, bytes(data))
            except NotImportable:
                continue
            pickle.dumps(value)  # what did come out is data


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"")
    os.truncate(file, pickles.MAX_PICKLE_BYTES + 1)
    with pytest.raises(NotImportable, match="more than the 33554432"):
        read_pickle(file)
    with pytest.raises(NotImportable, match="not there"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(NotImportable, match="is no file"):
        read_pickle(tmp_path)


def nested(depth: int, close: bytes = b"\x85") -> bytes:
    return b"\x80\x02)" + close * (depth - 1) + b"."


def test_nesting_has_a_limit(tmp_path: Path) -> None:
    assert read(tmp_path, nested(pickles.MAX_DEPTH)) is not None
    for depth in (pickles.MAX_DEPTH + 1, 200_000):
        with pytest.raises(UnsafePickle, match="nests more than 16"):
            read(tmp_path, nested(depth))
    with pytest.raises(NotImportable, match="a numpy type without a name"):
        read(tmp_path, b"\x80\x02cnumpy\ndtype\n" + nested(200_000)[2:-1] + b"\x85R.")
    with pytest.raises(UnsafePickle, match="nests"):
        read(tmp_path, b"\x80\x02]q\x00h\x00a.")  # a list within itself


def test_a_small_file_that_stands_for_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MAX_STEPS", 20_000)
    layers = b"".join(b"](" + b"h" + bytes([i]) + (b"h" + bytes([i])) * 9 + b"eq" + bytes([i + 1]) for i in range(8))
    with pytest.raises(UnsafePickle, match="more than 20000 elements"):
        read(tmp_path, b"\x80\x02(]q\x00" + layers + b"l.")  # ten of ten of ten …
    text = b"X" + struct.pack("<I", 5000) + b"a" * 5000 + b"q\x00"
    many = (b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86R") * 10
    with pytest.raises(UnsafePickle, match="more than 20000 elements"):
        read(tmp_path, b"\x80\x02](" + text + many + b"e.")
    with pytest.raises(UnsafePickle, match="more than 20000 elements"):
        read(tmp_path, pickle.dumps([np.zeros(5000)], 2))
    with pytest.raises(UnsafePickle, match="more than 20000 elements"):
        read(tmp_path, b"\x80\x02](" + b"N" * 20_000 + b"e.")


# -- torch.save -------------------------------------------------------------------------------------------------------

SHAPE = (1, 8, 32, 32)


def tensors(file: Path) -> Any:
    return read_tensors(file, 10**7, 100)


def noise(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(size=SHAPE).astype(np.float32) for i in range(count)]


@pytest.mark.parametrize(("code", "dtype", "step"), [("f4", np.float32, 0), ("f2", np.float16, 2**-10)])
def test_tensors_of_every_type(code: str, dtype: type, step: float, tmp_path: Path) -> None:
    given = noise(3)
    found = tensors(write_tensors(tmp_path / "latents.pt", [*given, *given[::-1]], code))
    assert len(found) == 6
    for item, expected in zip(found, [*given, *given[::-1]], strict=True):
        assert item.dtype == dtype and item.shape == SHAPE and not item.flags.writeable
        assert np.abs(item - expected).max() <= step * np.abs(expected).max()


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    (given,) = noise(1)
    (found,) = tensors(write_tensors(tmp_path / "latents.pt", [given], "bf16"))
    assert found.dtype == np.float32
    assert (found == (given.view(np.uint32) >> 16 << 16).view(np.float32)).all()


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_what_torch_itself_saves(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    batch = torch.randn((4, 8, 32, 32)).to(getattr(torch, kind))
    given = [batch[1:2], batch[3:4].clone(), batch.permute(0, 1, 3, 2)[2:3]]
    torch.save([*given, *given[::-1]], tmp_path / "latents.pt")
    found = tensors(tmp_path / "latents.pt")
    for item, expected in zip(found, [*given, *given[::-1]], strict=True):
        assert (item == expected.float().numpy()).all()


def test_the_form_before_torch_1_6_is_refused_with_advice(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save([torch.zeros(3)], tmp_path / "latents.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(NotImportable, match=r"before torch 1\.6") as caught:
        tensors(tmp_path / "latents.pt")
    assert "save it once" in caught.value.hint


def one(
    file: Path,
    size: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
    elements: int = 6,
    memory: bytes = np.arange(6, dtype="<f4").tobytes(),
    kind: bytes = STORAGES["f4"],
    key: str = "0",
) -> Any:
    pickled = tensor_pickle(kind, key, elements, size, stride, offset)
    (value,) = tensors(write_zip(file, {"a/data.pkl": list_pickle([pickled]), "a/data/0": memory}))
    return value.tolist()


def test_views_of_a_tensors_memory(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    assert one(file) == [[0, 1, 2], [3, 4, 5]]
    assert one(file, (3, 2), (1, 3)) == [[0, 3], [1, 4], [2, 5]]
    assert one(file, (2,), (2,), 3) == [3, 5]
    assert one(file, (3,), (0,), 5) == [5, 5, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (2, 4)},
        {"size": (3, 3)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**31 - 1},
        {"stride": (4, 1)},
        {"stride": (3, -1)},
        {"stride": (3,)},
        {"size": (2, 0)},
        {"size": (2, -3)},
        {"size": (), "stride": ()},
        {"size": (1,) * 9, "stride": (1,) * 9},
        {"size": (2**31 - 1,) * 8, "stride": (0,) * 8},
        {"elements": 5},
        {"elements": 7},
        {"elements": -6},
        {"elements": 2**31 - 1},
        {"memory": b""},
        {"memory": bytes(25)},
        {"kind": b"DoubleStorage"},
        {"kind": b"IntStorage"},
        {"kind": b"load"},
        {"kind": STORAGES["f2"]},
        {"key": "1"},
        {"key": "../../data.pkl"},
        {"key": "/etc/passwd"},
        {"key": ""},
    ],
)
def test_tensors_that_reach_past_their_memory(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotImportable):
        one(tmp_path / "latents.pt", **wrong)


@pytest.mark.parametrize(
    "identity",
    [
        b"X\x07\x00\x00\x00storage",  # no tuple
        b"(X\x06\x00\x00\x00moduleX\x02\x00\x00\x00osX\x01\x00\x00\x000X\x01\x00\x00\x000K\x06t",
        b"(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x01\x00\x00\x000K\x06t",
        b"(X\x07\x00\x00\x00storageX\x0c\x00\x00\x00FloatStorageX\x01\x00\x00\x000X\x01\x00\x00\x000K\x06t",
        b"(X\x07\x00\x00\x00storageccollections\nOrderedDict\nX\x01\x00\x00\x000X\x01\x00\x00\x000K\x06t",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)X\x01\x00\x00\x000K\x06t",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x01\x00\x00\x000K\x06K\x01t",
    ],
)
def test_persistent_ids_that_mean_something_else(identity: bytes, tmp_path: Path) -> None:
    entries = {"a/data.pkl": b"\x80\x02" + identity + b"Q.", "a/data/0": bytes(24)}
    with pytest.raises(UnsafePickle):
        tensors(write_zip(tmp_path / "latents.pt", entries))


def test_a_hostile_pickle_within_a_torch_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for hostile in HOSTILE.values():
        file = write_zip(tmp_path / "latents.pt", {"a/data.pkl": pickle.dumps(hostile, 2)})
        with pytest.raises(UnsafePickle):
            tensors(file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["latents.pt"]


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "a\\..\\b", "..", "b", "/etc/cron.d/x", "b/data/0"])
def test_entries_with_names_of_other_places(name: str, tmp_path: Path) -> None:
    entries = {"a/data.pkl": list_pickle([]), name: b""}
    with pytest.raises(UnsafePickle):
        tensors(write_zip(tmp_path / "latents.pt", entries))
    assert [entry.name for entry in tmp_path.iterdir()] == ["latents.pt"]


def test_zip_bombs(tmp_path: Path) -> None:
    bomb = {"a/data.pkl": list_pickle([]), "a/data/0": bytes(10**7)}
    with pytest.raises(UnsafePickle, match="compressed"):
        tensors(write_zip(tmp_path / "latents.pt", bomb, zipfile.ZIP_DEFLATED))
    many = {"a/data.pkl": list_pickle([])} | {f"a/data/{i}": b"" for i in range(100)}
    with pytest.raises(NotImportable, match="more than 100 entries"):
        tensors(write_zip(tmp_path / "latents.pt", many))
    file = write_zip(tmp_path / "large.pt", {"a/data.pkl": list_pickle([])})
    os.truncate(file, 10**7 + 1)
    with pytest.raises(NotImportable, match="more than the 10000000"):
        tensors(file)


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    """A directory whose entries all point to the first one: small, and said to hold any amount."""
    file = write_zip(tmp_path / "latents.pt", {"a/data.pkl": list_pickle([]), "a/data/0": bytes(10**5)})
    whole = file.read_bytes()
    directory = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 4)
    end = whole.index(b"PK\5\6")
    entry = whole[directory:end]
    copies = b"".join(entry.replace(b"a/data/0", f"a/data/{i}".encode()) for i in range(10))
    first = whole.index(b"PK\1\2")
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 11, 11, directory - first + len(copies), first, 0)
    file.write_bytes(whole[:directory] + copies + tail)
    with pytest.raises(UnsafePickle, match="more than its own size"):
        tensors(file)


def test_other_zips_and_damaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "latents.pt"
    for content in (b"", b"PK\3\4", b"no zip at all", pickle.dumps([1])):
        file.write_bytes(content)
        with pytest.raises(NotImportable):
            tensors(file)
    with pytest.raises(NotImportable, match=r"no data\.pkl"):
        tensors(write_zip(file, {"a/version": b"3"}))
    with pytest.raises(UnsafePickle, match="not laid out"):
        tensors(write_zip(file, {"a/data.pkl": list_pickle([]), "b/data.pkl": list_pickle([])}))
    whole = write_tensors(file, noise(1)).read_bytes()
    broken = bytearray(whole)
    broken[whole.index(b"latents/data/0") + 200] ^= 1
    file.write_bytes(bytes(broken))
    with pytest.raises(NotImportable, match="damaged: Bad CRC"):
        tensors(file)
    for end in range(0, len(whole), 997):
        file.write_bytes(whole[:end])
        with pytest.raises(NotImportable):
            tensors(file)


def test_torch_is_not_imported() -> None:
    code = "import sys, avatar_prep.imported; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_here_unpickles() -> None:
    source = Path(pickles.__file__).read_text()
    assert not [name for name in ("import pickle\n", "Unpickler", "import torch", "torch.load") if name in source]

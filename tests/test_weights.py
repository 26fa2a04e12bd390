"""MuseTalk's weights: the manifest, what is on disk, checks without unpickling, and downloads from a server that fails.

The server is real, on this machine; huggingface_hub talks to it as to the Hub. The files are small and made here.
"""

import fcntl
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from fake_hub import REVISION, Site, serving
from processes import environment
from safetensors.torch import save_file

from lipserve.errors import LipserveError, ModelsMissing, StorageFull
from lipserve.settings import Settings
from lipserve.weights import fetch as fetching
from lipserve.weights import web
from lipserve.weights.check import Damaged, verify
from lipserve.weights.folder import State, is_complete, look, repair, wrong_places
from lipserve.weights.manifest import (
    DWPOSE,
    MODELS,
    PROFILES,
    SD_VAE,
    UNET_V1,
    UNET_V15,
    WHISPER,
    HubFile,
    Kind,
    Model,
    WebFile,
    WeightFile,
)

REPO = "someone/some-model"
CONTENT = json.dumps({"numbers": list(range(20_000))}).encode()  # a configuration of 110 kB
UNET = UNET_V15.parts[1].files[0]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weight(source: HubFile | WebFile, content: bytes = CONTENT, place: str = "thing/config.json") -> WeightFile:
    return WeightFile(place, "json", source, len(content), sha256(content))


def everything_in(folder: Path) -> dict[str, bytes]:
    """But for the lock of the last fetch."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert files.pop(".fetch/lock", b"") == b""
    return files


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "PAUSE", 0.0)
    monkeypatch.setattr(web, "ATTEMPTS", 3)


# The manifest


def test_the_layout_is_that_of_musetalks_own_script() -> None:
    places = {file.place for model in MODELS for file in model.files}
    assert {
        "musetalk/musetalk.json",
        "musetalk/pytorch_model.bin",
        "musetalkV15/musetalk.json",
        "musetalkV15/unet.pth",
        "sd-vae/config.json",
        "sd-vae/diffusion_pytorch_model.bin",
        "whisper/config.json",
        "whisper/pytorch_model.bin",
        "whisper/preprocessor_config.json",
        "dwpose/dw-ll_ucoco_384.pth",
        "face-parse-bisent/79999_iter.pth",
        "face-parse-bisent/resnet18-5c106cde.pth",
    } <= places
    assert len(places) == sum(len(model.files) for model in MODELS)


def test_every_source_is_pinned_and_hash_prefixes_in_names_agree() -> None:
    for file in (file for model in MODELS for file in model.files):
        if isinstance(file.source, HubFile):
            assert len(file.source.revision) == 40 and int(file.source.revision, 16)
            assert file.place.rpartition("/")[2] == file.source.file.rpartition("/")[2]
        else:  # whoever moves a file on the web changes it without a trace
            assert file.sha256 is not None and file.size is not None
        assert str(file.source).startswith("https://")
        stem = file.place.rpartition("/")[2].removesuffix(".pth").rpartition("-")[2]
        if len(stem) >= 8 and not set(stem) - set("0123456789abcdef"):
            assert file.sha256 is not None and file.sha256.startswith(stem)


def test_nothing_that_a_profile_requires_is_restricted() -> None:
    for profile in PROFILES:
        assert not set(profile.required) & set(profile.optional)
        assert [model.name for model in profile.required if model.licence.restriction] == []


def test_musetalks_weights_are_shown_under_both_licences_with_the_places_that_name_them() -> None:
    shown = UNET_V15.licence.name
    assert UNET_V1.licence == UNET_V15.licence
    assert "any purpose, also commercial (README of github.com/TMElyralab/MuseTalk)" in shown
    assert "creativeml-openrail-m (model card of huggingface.co/TMElyralab/MuseTalk)" in shown


@pytest.mark.parametrize("place", ["/etc/passwd", "../x", "a/../b", "a", "a/b/c"])
def test_a_place_outside_its_folder_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="is not a folder and a file"):
        weight(WebFile("https://example.org/x"), place=place)


def test_an_address_that_is_not_https_is_refused() -> None:
    with pytest.raises(ValueError, match="is not https"):
        WebFile("http://example.org/x")


# The folder


def sparse(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as handle:
        handle.truncate(size)
    return path


def test_a_file_is_there_missing_or_of_the_wrong_size(tmp_path: Path) -> None:
    assert look(UNET, tmp_path).state is State.MISSING
    assert UNET.size is not None
    sparse(tmp_path / UNET.place, UNET.size)
    assert look(UNET, tmp_path).state is State.THERE
    sparse(tmp_path / UNET.place, UNET.size - 1)
    found = look(UNET, tmp_path)
    assert (found.state, found.size) == (State.WRONG_SIZE, UNET.size - 1)


def test_one_of_the_files_that_do_as_well_is_enough(tmp_path: Path) -> None:
    config, weights = (part.files for part in SD_VAE.parts)
    sparse(tmp_path / config[0].place, 547)
    assert not is_complete(SD_VAE, tmp_path)
    assert [file.place for file in fetching.wanted([SD_VAE], tmp_path)] == [weights[0].place]
    sparse(tmp_path / "sd-vae/diffusion_pytorch_model.bin", 334_707_217)
    assert is_complete(SD_VAE, tmp_path)
    assert fetching.wanted([SD_VAE], tmp_path) == []


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        (UNET, "musetalkV15/musetalkV15/unet.pth"),
        (UNET, "musetalk/musetalkV15/unet.pth"),
        (UNET, "models/musetalkV15/unet.pth"),
        (SD_VAE.parts[1].files[1], "sd-vae-ft-mse/diffusion_pytorch_model.bin"),
        (WHISPER.parts[1].files[0], "whisper/whisper/model.safetensors"),
    ],
)
def test_a_file_that_lies_too_deep_is_found_and_moved(file: WeightFile, wrong: str, tmp_path: Path) -> None:
    assert file.size is not None
    sparse(tmp_path / wrong, file.size)
    found = look(file, tmp_path)
    assert (found.state, found.at) == (State.WRONG_PLACE, wrong)
    (move,) = repair(tmp_path)
    assert (move.source, move.place, move.refused) == (wrong, file.place, "")
    assert look(file, tmp_path).state is State.THERE
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [file.place]
    assert not (tmp_path / wrong).parent.exists() or list((tmp_path / wrong).parent.iterdir())
    assert repair(tmp_path) == []


def test_repair_never_overwrites(tmp_path: Path) -> None:
    config = UNET_V15.parts[0].files[0]
    wrong, place = tmp_path / "musetalkV15" / config.place, tmp_path / config.place
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"x" * 748)
    place.write_bytes(b"my own")
    (move,) = repair(tmp_path)
    assert move.refused == "there is a file already"
    assert (wrong.read_bytes(), place.read_bytes()) == (b"x" * 748, b"my own")


def test_repair_never_overwrites_without_hard_links_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    test_repair_never_overwrites(tmp_path / "a")
    test_a_file_that_lies_too_deep_is_found_and_moved(UNET, "musetalkV15/musetalkV15/unet.pth", tmp_path / "b")


def test_half_a_file_in_the_wrong_place_is_left_there(tmp_path: Path) -> None:
    sparse(tmp_path / "musetalkV15/musetalkV15/unet.pth", 5)
    assert look(UNET, tmp_path).state is State.MISSING
    (move,) = repair(tmp_path)
    assert move.refused == "it has 5 bytes, not 3,400,074,924"
    assert (tmp_path / "musetalkV15/musetalkV15/unet.pth").exists()


def test_a_link_into_a_cache_still_leads_there(tmp_path: Path) -> None:
    blob = sparse(tmp_path / "cache/blob", 748)
    wrong = tmp_path / "models/musetalkV15/musetalkV15/musetalk.json"
    wrong.parent.mkdir(parents=True)
    wrong.symlink_to("../../../cache/blob")
    repair(tmp_path / "models")
    place = tmp_path / "models/musetalkV15/musetalk.json"
    assert (place.is_symlink(), place.resolve(), wrong.exists()) == (True, blob, False)


def test_no_wrong_place_is_another_files_place() -> None:
    places = {file.place for model in MODELS for file in model.files}
    assert not places & {wrong for model in MODELS for file in model.files for wrong in wrong_places(file)}


# Checks


def claimed(kind: Kind, sha: str | None = None) -> WeightFile:
    return WeightFile("a/b", kind, WebFile("https://example.org/b"), None, sha)


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def onnx(*fields: bytes) -> bytes:
    """ir_version 8, then the fields."""
    return b"\x08\x08" + b"".join(fields)


GRAPH = b"\x3a\x05hello"  # field 7, five bytes


def write_sample(kind: str, path: Path) -> Path:
    state = {"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.float16), "c": torch.zeros(0)}
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "onnx":
        path.write_bytes(onnx(b"\x12\x03abc", GRAPH))
    elif kind == "json":
        path.write_text('{"a": [1, 2, 3]}')
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


KINDS: dict[str, Kind] = {
    "safetensors": "safetensors",
    "onnx": "onnx",
    "json": "json",
    "zip": "torch",
    "legacy": "torch",
}


@pytest.mark.parametrize("made", KINDS)
def test_each_kind_opens_as_what_it_claims_and_as_nothing_else(made: str, tmp_path: Path) -> None:
    path = write_sample(made, tmp_path / "file")
    assert verify(claimed(KINDS[made]), path) == "format"
    known = replace(claimed(KINDS[made], sha256(path.read_bytes())), size=path.stat().st_size)
    assert verify(known, path) == "size, sha256, format"
    for other in set(KINDS.values()) - {KINDS[made]}:
        with pytest.raises(Damaged):
            verify(claimed(other), path)


@pytest.mark.parametrize("made", KINDS)
@pytest.mark.parametrize("kept", [0, 1, 9, 0.5, -1])
def test_a_file_that_is_cut_off_does_not_open(made: str, kept: float, tmp_path: Path) -> None:
    path = write_sample(made, tmp_path / "file")
    whole = path.read_bytes()
    if made == "legacy" and kept == -1:
        pytest.skip("the last byte of the old format belongs to a tensor, which is not read; its checksum is for that")
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(Damaged):
        verify(claimed(KINDS[made]), path)


def test_size_and_checksum_are_named(tmp_path: Path) -> None:
    path = write_sample("json", tmp_path / "file")
    with pytest.raises(Damaged, match="it has 16 bytes, not 9"):
        verify(replace(claimed("json"), size=9), path)
    with pytest.raises(Damaged, match=f"its sha256 is {sha256(path.read_bytes())}, not {'0' * 64}"):
        verify(claimed("json", "0" * 64), path)


def test_a_broken_tensor_of_a_zip_is_found(tmp_path: Path) -> None:
    path = write_sample("zip", tmp_path / "file")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    content[content.index(struct.pack("<f", 1.0) * 6)] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=f"its part {info.filename} is broken"):
        verify(claimed("torch"), path)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_wants_code_is_named_and_not_run(new: bool, protocol: int, tmp_path: Path) -> None:
    path, mark = tmp_path / "file", tmp_path / "executed"
    state = {"a": torch.ones(2), "evil": Malicious(mark)}
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    with pytest.raises(Damaged, match=r"wants more than tensors: .*posix mkdir"):
        verify(claimed("torch"), path)
    # One that its authors published so is what it claims; loading it is another matter.
    assert verify(claimed("torch", sha256(path.read_bytes())), path) == "sha256, format"
    assert not mark.exists()


def test_a_name_hidden_in_the_pickles_memory_is_not_overlooked(tmp_path: Path) -> None:
    hidden = b"\x80\x04\x8c\x05posixq\x00\x8c\x06systemq\x010h\x00h\x01\x93."
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("x/data.pkl", hidden)
    with pytest.raises(Damaged, match="a name that cannot be read"):
        verify(claimed("torch"), tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><title>Virus scan warning</title>", "web page"),
    ],
)
@pytest.mark.parametrize("kind", sorted(set(KINDS.values())))
def test_what_lies_there_instead_of_weights_is_named(content: bytes, said: str, kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Damaged, match=said):
        verify(claimed(kind), tmp_path / "file")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "4 bytes, which its shape does not need"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "a begins at 4, not at 0"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}, "bytes, but it has"),
        ({"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, "does not describe a"),
        ({"a": [1]}, "does not describe a"),
        ([], "no object"),
    ],
)
def test_a_safetensors_header_that_lies_is_found(header: Any, said: str, tmp_path: Path) -> None:
    encoded = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(8))
    with pytest.raises(Damaged, match=said):
        verify(claimed("safetensors"), tmp_path / "file")


@pytest.mark.parametrize("content", [onnx(), onnx(b"\x12\x03abc"), onnx(GRAPH, b"\x0b"), onnx(b"\xff" * 12)])
def test_a_protobuf_that_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Damaged):
        verify(claimed("onnx"), tmp_path / "file")


# Downloads from the web


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose file is at /dir/x; http is allowed here, since it has no certificate."""
    with serving(Site({"/dir/x": CONTENT})) as site:
        yield site


def get(site: Site, partial: Path, size: int | None = len(CONTENT), **options: Any) -> list[tuple[int, int | None]]:
    seen: list[tuple[int, int | None]] = []
    web.download(
        f"{site.url}/dir/x",
        partial,
        size,
        lambda done, total: seen.append((done, total)),
        schemes=("http", "https"),
        **options,
    )
    return seen


def test_a_file_comes_whole_with_its_progress(site: Site, tmp_path: Path) -> None:
    seen = get(site, tmp_path / "new/part")
    assert (tmp_path / "new/part").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_dropped_connection_is_taken_up_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.hang_ups.extend([10_000, 20_000, 0, 0, 30_000])
    get(site, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT
    stops = (10_000, 30_000, 30_000, 30_000, 60_000)
    assert site.ranges_asked() == [None, *(f"bytes={stop}-" for stop in stops)]


def test_a_stopped_download_goes_on_the_next_time(site: Site, tmp_path: Path) -> None:
    site.hang_ups.extend([10_000, 0, 0, 0])
    with pytest.raises(web.DownloadFailed, match=f"ended after 10,000 of {len(CONTENT):,} bytes") as caught:
        get(site, tmp_path / "part")
    assert caught.value.unreachable
    assert (tmp_path / "part").stat().st_size == 10_000
    site.seen.clear()
    get(site, tmp_path / "part")
    assert site.ranges_asked() == ["bytes=10000-"]
    assert (tmp_path / "part").read_bytes() == CONTENT
    site.seen.clear()
    get(site, tmp_path / "part")
    assert site.seen == []  # it was whole already


def test_versions_are_never_mixed(site: Site, tmp_path: Path) -> None:
    site.hang_ups.extend([10_000, 0, 0, 0])
    with pytest.raises(web.DownloadFailed):
        get(site, tmp_path / "part")
    site.files["/dir/x"], site.etag = CONTENT[::-1], '"two"'
    get(site, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("ranges", "etag"), [(False, '"one"'), (True, ""), (True, 'W/"one"')])
def test_a_server_that_cannot_continue_begins_anew(ranges: bool, etag: str, site: Site, tmp_path: Path) -> None:
    site.ranges, site.etag = ranges, etag
    site.hang_ups.append(10_000)
    get(site, tmp_path / "part")
    assert (tmp_path / "part").read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ["", 'W/"one"'])
def test_without_a_mark_a_checksum_allows_to_continue(etag: str, site: Site, tmp_path: Path) -> None:
    site.etag = etag
    site.hang_ups.append(10_000)
    get(site, tmp_path / "part", checked=True)
    assert site.ranges_asked() == [None, "bytes=10000-"]
    assert (tmp_path / "part").read_bytes() == CONTENT


def test_what_is_there_but_longer_than_the_file_begins_anew(site: Site, tmp_path: Path) -> None:
    for size in (None, len(CONTENT)):
        (tmp_path / "part").write_bytes(b"x" * (len(CONTENT) + 5))
        (tmp_path / "part.etag").write_text(site.etag)
        get(site, tmp_path / "part", size)
        assert (tmp_path / "part").read_bytes() == CONTENT


def test_passing_troubles_are_waited_out_and_lasting_ones_named(site: Site, tmp_path: Path) -> None:
    site.troubles.extend([503, 429])
    get(site, tmp_path / "part")
    assert len(site.seen) == 3
    site.troubles.extend([503] * 3)
    with pytest.raises(web.DownloadFailed, match="answered 503") as caught:
        get(site, tmp_path / "other")
    assert caught.value.unreachable
    site.troubles.append(403)
    site.seen.clear()
    with pytest.raises(web.DownloadFailed, match="answered 403") as caught:
        get(site, tmp_path / "other")
    assert (len(site.seen), caught.value.unreachable) == (1, False)


def test_more_than_the_file_is_never_written(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(web.DownloadFailed, match=f"has {len(CONTENT):,} bytes, not 100"):
        get(site, tmp_path / "part", 100)
    site.extra_headers["Content-Length"] = ""  # it does not say how much is coming
    with pytest.raises(web.DownloadFailed, match="sent more than 100 bytes"):
        get(site, tmp_path / "part", 100)
    monkeypatch.setattr(web, "MAX_UNKNOWN", 1000)
    with pytest.raises(web.DownloadFailed, match="sent more than 1,000 bytes"):
        get(site, tmp_path / "other", None)
    assert max(len(content) for content in everything_in(tmp_path).values()) <= 1000


def test_only_https_is_spoken_wherever_it_leads(site: Site, tmp_path: Path) -> None:
    with pytest.raises(web.DownloadFailed, match="is not https"):
        web.download(f"{site.url}/dir/x", tmp_path / "part", None)
    (tmp_path / "secret").write_text("secret")
    for target in (f"file://{tmp_path}/secret", "ftp://example.org/x", "https://example.org/x"):
        site.redirects["/dir/x"] = target
        with pytest.raises(web.DownloadFailed, match=f"{target} is not http$|'{target}' is not allowed"):
            web.download(f"{site.url}/dir/x", tmp_path / "part", None, schemes=("http",))
    assert not (tmp_path / "part").exists()


def test_a_token_stays_with_its_host(site: Site, tmp_path: Path) -> None:
    token = {"Authorization": "Bearer secret"}
    site.redirects["/dir/x"] = "/dir/y"
    site.files["/dir/y"] = CONTENT
    get(site, tmp_path / "part", headers=token)
    assert [headers["Authorization"] for _, _, headers in site.seen] == ["Bearer secret"] * 2
    with serving(Site({"/dir/y": CONTENT})) as other:
        site.redirects["/dir/x"] = f"{other.url}/dir/y"
        get(site, tmp_path / "other", headers=token)
    assert [headers["Authorization"] for _, _, headers in other.seen] == [None]


def test_a_compressed_answer_is_refused(site: Site, tmp_path: Path) -> None:
    site.extra_headers["Content-Encoding"] = "gzip"
    with pytest.raises(web.DownloadFailed, match="compressed"):
        get(site, tmp_path / "part")


# Downloads from the Hub, through huggingface_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A Hub with one repository, which huggingface_hub in this process takes for the real one."""
    with serving(Site({f"/{REPO}/resolve/{REVISION}/deep/config.json": CONTENT})) as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


HUB_FILE = weight(HubFile(REPO, "deep/config.json", REVISION))


def test_a_hub_file_lands_in_its_place_and_nothing_else_is_left(hub: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    fetching.fetch([HUB_FILE], tmp_path / "models", lambda file, done, total: seen.append((file.place, done, total)))
    assert everything_in(tmp_path / "models") == {"thing/config.json": CONTENT}
    assert seen[-1] == ("thing/config.json", len(CONTENT), len(CONTENT))
    hub.seen.clear()
    fetching.fetch([HUB_FILE], tmp_path / "models")
    assert hub.seen == []  # it was there


def test_a_hub_download_that_breaks_goes_on_at_once_and_the_next_time(hub: Site, tmp_path: Path) -> None:
    hub.hang_ups.extend([10_000, 5_000, 0, 0, 0])
    with pytest.raises(ModelsMissing, match="ended after 15,000 of"):
        fetching.fetch([HUB_FILE], tmp_path)
    assert not (tmp_path / "thing").exists()
    fetching.fetch([HUB_FILE], tmp_path)
    assert hub.ranges_asked() == [None, "bytes=10000-", *["bytes=15000-"] * 4]
    assert everything_in(tmp_path) == {"thing/config.json": CONTENT}


def test_the_hubs_cdn_serves_the_bytes_and_sees_no_token(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_secret")
    fetching.fetch([HUB_FILE], tmp_path / "direct")
    assert {headers["Authorization"] for _, _, headers in hub.seen} == {"Bearer hf_secret"}
    with serving(Site(dict(hub.files))) as cdn:
        hub.cdn = cdn.url
        fetching.fetch([HUB_FILE], tmp_path / "models")
    assert everything_in(tmp_path / "models") == {"thing/config.json": CONTENT}
    assert [(method, headers["Authorization"]) for method, _, headers in cdn.seen] == [("GET", None)]


def test_an_address_that_runs_out_is_replaced(hub: Site, tmp_path: Path) -> None:
    with serving(Site(dict(hub.files))) as cdn:
        hub.cdn = cdn.url
        cdn.hang_ups.append(10_000)
        cdn.troubles.extend([200, 403])
        fetching.fetch([HUB_FILE], tmp_path)
        assert [method for method, _, _ in hub.seen] == ["HEAD", "HEAD"]
        assert cdn.ranges_asked() == [None, "bytes=10000-", "bytes=10000-"]
        assert everything_in(tmp_path) == {"thing/config.json": CONTENT}
        cdn.troubles.extend([403, 403])
        hub.seen.clear()
        with pytest.raises(ModelsMissing, match="answered 403"):
            fetching.fetch([replace(HUB_FILE, place="thing/other.json")], tmp_path)
        assert len(hub.seen) == 1  # nothing came: it is not the time that is up


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {"X-Error-Code": "EntryNotFound"}, f"{REPO} has no deep/config.json at revision {REVISION}"),
        (404, {"X-Error-Code": "RevisionNotFound"}, f"has no revision {REVISION} of {REPO}"),
        (404, {"X-Error-Code": "RepoNotFound"}, f"has no {REPO}, or does not show it to you"),
        (403, {"X-Error-Code": "GatedRepo"}, f"{REPO} asks for consent on its page"),
        (403, {"X-Error-Code": ""}, "answered 403"),
    ],
)
def test_a_refusal_of_the_hub_is_explained(
    status: int, headers: dict[str, str], said: str, hub: Site, tmp_path: Path
) -> None:
    hub.head_status, hub.head_headers = status, headers
    with pytest.raises(ModelsMissing) as caught:
        fetching.fetch([HUB_FILE], tmp_path)
    assert said in caught.value.message
    where = f"https://huggingface.co/{REPO}/resolve/{REVISION}/deep/config.json -> {tmp_path}/thing/config.json"
    assert where in caught.value.hint
    assert everything_in(tmp_path) == {}


def test_without_a_network_each_source_is_tried_once_and_all_that_is_missing_is_named(
    hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    other = replace(HUB_FILE, place="thing/other.json")
    with serving(Site({})) as gone:
        pass
    monkeypatch.setattr(fetching.web, "download", lambda url, *rest: (_ for _ in ()).throw(AssertionError(url)))
    with pytest.raises(ModelsMissing) as caught:
        fetching.fetch([HUB_FILE, other], tmp_path)
    assert caught.value.message.splitlines() == [
        "2 of the files could not be fetched:",
        "  thing/config.json: HF_HUB_OFFLINE is set",
        "  thing/other.json: HF_HUB_OFFLINE is set",
    ]
    assert gone.seen == []


# Fetching


def test_another_file_than_the_manifests_is_refused_and_not_kept(hub: Site, tmp_path: Path) -> None:
    with pytest.raises(ModelsMissing, match="what came is not the file: its sha256 is"):
        fetching.fetch([replace(HUB_FILE, sha256="0" * 64)], tmp_path)
    assert everything_in(tmp_path) == {}


def test_one_source_that_fails_does_not_keep_the_others(hub: Site, tmp_path: Path) -> None:
    missing = weight(HubFile(REPO, "nowhere.json", REVISION), place="thing/nowhere.json")
    with pytest.raises(ModelsMissing, match="1 of the files could not be fetched") as caught:
        fetching.fetch([missing, HUB_FILE], tmp_path)
    assert "thing/config.json" not in caught.value.message
    assert everything_in(tmp_path) == {"thing/config.json": CONTENT}


def test_a_file_of_the_wrong_size_yields_only_when_told(hub: Site, tmp_path: Path) -> None:
    (tmp_path / "thing").mkdir()
    (tmp_path / "thing/config.json").write_bytes(b"my own")
    with pytest.raises(ModelsMissing, match=r"thing/config\.json \(6 instead of") as caught:
        fetching.fetch([HUB_FILE], tmp_path)
    assert "--replace" in caught.value.hint
    assert everything_in(tmp_path) == {"thing/config.json": b"my own"}
    fetching.fetch([HUB_FILE], tmp_path, replace=True)
    assert everything_in(tmp_path) == {"thing/config.json": CONTENT}


def test_space_is_asked_for_before_the_first_byte(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 * 10**9))
    with pytest.raises(StorageFull, match=r"3\.4 GB are still to come, but .* has 3\.0 GB free") as caught:
        fetching.fetch([HUB_FILE, UNET], tmp_path)
    assert "LIPSERVE_MODELS_DIR" in caught.value.hint
    assert hub.seen == []
    sparse(tmp_path / ".fetch/musetalkV15--unet.pth", 10**9)  # of which a part is there already
    fetching._require_space([UNET], tmp_path)


def test_a_disk_that_becomes_full_is_said_so(hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.web, "download", full)
    with pytest.raises(StorageFull, match=r"became full while thing/config\.json came"):
        fetching.fetch([HUB_FILE], tmp_path)


def test_two_fetches_do_not_write_the_same_file(hub: Site, tmp_path: Path) -> None:
    (tmp_path / ".fetch").mkdir()
    with (tmp_path / ".fetch/lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ModelsMissing, match="Another `lipserve models fetch` is at work"):
            fetching.fetch([HUB_FILE], tmp_path)
    fetching.fetch([HUB_FILE], tmp_path)


def test_names_that_do_not_exist_are_answered_with_those_that_do() -> None:
    assert fetching.find("dwpose") is DWPOSE
    assert fetching.find("musetalkV15/unet.pth") is UNET
    with pytest.raises(ModelsMissing, match="no model or file 'unet'") as caught:
        fetching.find("unet")
    assert "unet-v15" in caught.value.hint


# The command line


def run(models_dir: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(Settings(models_dir=models_dir)) | more
    command = [sys.executable, "-m", "lipserve", "models", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def fill(models_dir: Path, *models: Model) -> None:
    for model in models:
        for part in model.parts:
            sparse(models_dir / part.files[0].place, part.files[0].size or 1)


def test_status_answers_with_its_exit_code(tmp_path: Path) -> None:
    done = run(tmp_path, "status")
    assert done.returncode == 1
    assert "lipserve models fetch --profile musetalk-v15" in done.stderr
    fill(tmp_path, UNET_V15, SD_VAE, WHISPER)
    done = run(tmp_path, "status")
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = (line for line in done.stdout.splitlines() if "musetalkV15/unet.pth" in line)
    assert "there" in row and "3,400.1 MB" in row and "any purpose" in row
    assert done.stdout.count("missing, optional") == 9
    done = run(tmp_path, "status", "--profile", "musetalk-v1")
    assert (done.returncode, "incomplete: unet-v1" in done.stderr) == (1, True)
    done = run(tmp_path, "status", "--profile", "v2")
    assert (done.returncode, "musetalk-v15, musetalk-v1" in done.stderr) == (1, True)


def test_a_doubled_folder_is_named_and_repaired(tmp_path: Path) -> None:
    fill(tmp_path, UNET_V15, SD_VAE, WHISPER)
    (tmp_path / "musetalkV15/musetalkV15").mkdir()
    (tmp_path / "musetalkV15/unet.pth").rename(tmp_path / "musetalkV15/musetalkV15/unet.pth")
    done = run(tmp_path, "status")
    assert done.returncode == 1
    assert "wrong place: musetalkV15/musetalkV15/unet.pth" in " ".join(done.stdout.split())
    assert "lipserve models repair" in done.stderr
    done = run(tmp_path, "repair")
    assert done.returncode == 0
    assert "moved musetalkV15/musetalkV15/unet.pth to musetalkV15/unet.pth" in done.stderr
    assert run(tmp_path, "status").returncode == 0


def test_fetch_repairs_before_it_asks_the_network(tmp_path: Path) -> None:
    fill(tmp_path, UNET_V15, SD_VAE, WHISPER)
    (tmp_path / "musetalkV15").rename(tmp_path / "aside")
    (tmp_path / "musetalkV15").mkdir()
    (tmp_path / "aside").rename(tmp_path / "musetalkV15/musetalkV15")
    done = run(tmp_path, "fetch", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert look(UNET, tmp_path).state is State.THERE


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    assert "no weights in" in run(tmp_path, "verify").stderr
    (tmp_path / "taesd").mkdir()
    (tmp_path / "taesd/config.json").write_text("{}")
    done = run(tmp_path, "verify")
    assert (done.returncode, "good" in done.stdout) == (0, True)
    assert run(tmp_path, "verify", "--profile", "musetalk-v1").returncode == 1
    fill(tmp_path, WHISPER)
    done = run(tmp_path, "verify")
    assert done.returncode == 1
    (row,) = (line for line in done.stdout.splitlines() if "whisper/config.json" in line)
    assert "damaged" in row and "sha256" in row


def test_fetch_as_a_user_with_an_endpoint_and_a_token_of_their_own(tmp_path: Path) -> None:
    file = fetching.find("taesd/config.json")
    assert isinstance(file, WeightFile) and isinstance(file.source, HubFile)
    path = f"/{file.source.repo}/resolve/{file.source.revision}/config.json"
    with serving(Site({path: b'{"a": 1}'}, head_headers={"X-Repo-Commit": file.source.revision})) as hub:
        done = run(tmp_path, "fetch", file.place, HF_ENDPOINT=hub.url, HF_TOKEN="hf_mine", NO_PROXY="127.0.0.1")
    assert done.returncode == 0, done.stderr
    assert "MIT" in done.stdout and "madebyollin/taesd" in done.stdout
    assert everything_in(tmp_path) == {file.place: b'{"a": 1}'}
    asked = [(method, headers["Authorization"]) for method, seen, headers in hub.seen if seen == path]
    assert asked == [("HEAD", "Bearer hf_mine"), ("GET", "Bearer hf_mine")]


def test_a_fetch_that_is_refused_ends_with_advice_and_exit_code_1(tmp_path: Path) -> None:
    done = run(tmp_path, "fetch", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "models_missing: 6 of the files could not be fetched" in done.stderr
    assert "musetalkV15/unet.pth: HF_HUB_OFFLINE is set" in done.stderr
    assert f"/musetalkV15/unet.pth -> {tmp_path}/musetalkV15/unet.pth" in done.stderr
    assert "Traceback" not in done.stderr


def test_restricted_models_are_fetched_only_if_named(tmp_path: Path) -> None:
    done = run(tmp_path, "fetch", "--optional", HF_HUB_OFFLINE="1")
    for name in ("face-parsing", "s3fd", "gfpgan"):
        assert f"not fetched unless named: {name}" in done.stderr
    assert "dwpose/dw-ll_ucoco_384.onnx: HF_HUB_OFFLINE" in done.stderr
    assert "79999_iter" not in done.stdout + done.stderr
    done = run(tmp_path, "fetch", "face-parsing", HF_HUB_OFFLINE="1")
    assert "non-commercial" in done.stdout
    assert "face-parse-bisent/79999_iter.pth: HF_HUB_OFFLINE" in done.stderr


def test_without_the_extra_only_fetch_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelsMissing) as caught:
        fetching.fetch([HUB_FILE], tmp_path)
    assert "lipserve[models]" in caught.value.hint
    assert isinstance(caught.value, LipserveError)


def test_looking_needs_neither_torch_nor_the_hub(tmp_path: Path) -> None:
    code = "import sys, lipserve.weights.cli; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_weights_of_another_size_in_musetalks_layout_are_told_from_the_real_ones(reference: Path) -> None:
    weights = reference / "weights"
    assert {look(file, weights).state for file in UNET_V15.files} == {State.WRONG_SIZE}
    for file in (*UNET_V15.files, SD_VAE.parts[1].files[0], WHISPER.parts[1].files[0], *WHISPER.extras):
        assert verify(replace(file, size=None, sha256=None), weights / file.place) == "format"
